"""Write results into docs/performance.md: `python -m tests.bench.publish [.lab/bench.json]`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.bench import report
from tests.lab import ROOT


def publish(page: str, tables: Mapping[str, str]) -> str:
    """Return the page with each table between its markers; tables without new results stay."""

    def replace(found: re.Match[str]) -> str:
        name, old = found[1], found[2]
        return f"<!-- {name} -->\n{tables.get(name, old)}<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n(.*?)<!-- end -->", replace, page, flags=re.DOTALL)


def main() -> None:
    """Rewrite the page and its plot."""
    result = json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".lab/bench.json").read_text())
    page = ROOT / "docs/performance.md"
    page.write_text(publish(page.read_text(), report.tables(result)))
    if "growth" in result:
        (ROOT / "docs/performance.svg").write_text(report.plot(result["growth"]))


if __name__ == "__main__":
    main()
