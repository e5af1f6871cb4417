"""Each application works as its authors wrote it: its settings, data, files and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
