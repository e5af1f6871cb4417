"""Write the four repositories: `python -m tests.apps DIRECTORY`."""

import sys
from pathlib import Path

from tests.apps import APPS, make_repository

(directory,) = sys.argv[1:]
for name in APPS:
    make_repository(name, Path(directory))
