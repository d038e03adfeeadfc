"""python -m fedsim.report RUN [RUN…] [--to page.html]: one page about a run, or about several."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from fedsim.errors import Fault
from fedsim.report.page import write_report


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write one page of HTML about a run, or about several side by side, with figures and tables beside it."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of comparisons."""
    to: Path | None = None
    """The page to write; by default report.html in the folder, or here when there are several folders."""
    reference: str | None = None
    """Of several runs: the row that the others are tested against; by default the best of the others."""


def main(arguments: list[str] | None = None) -> int:
    """Write the report and say where; return 2, with one message, when a folder cannot be reported on."""
    options = tyro.cli(ReportOptions, args=arguments, prog="python -m fedsim.report")
    if not options.runs:
        print("Name at least one run folder: python -m fedsim.report RUN [RUN…]", file=sys.stderr)
        return 2
    to = options.to or (options.runs[0] if len(options.runs) == 1 else Path()) / "report.html"
    try:
        print(f"report {write_report(options.runs, to, options.reference)}")
    except (ValueError, OSError, Fault) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
