"""Compare finished runs: ``python -m opir_lightning.compare RUN... [-o DIR]``.

Neither torch nor Matplotlib is imported before the arguments are read, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from opir_lightning.errors import UserError
from opir_lightning.threads import limit_spinning

EPILOG = """\
RUN is the folder of a training, of an evaluation or of a search, a Weights & Biases folder offline-run-*, or a folder
of such, as a sweep leaves. Runs that differ in nothing but the seed are one group. Of a search, all trials are shown,
and the complete ones are runs. The results are index.html, a page that needs nothing else, scores.csv, runs.csv,
differences.csv, of searches trials.csv, tables.md, tables.tex and the plots as PDF.
Exit status: 0 compared (what is broken or unfinished is named and left out), 1 nothing to compare, 2 wrong usage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (wrong usage leaves by ``SystemExit(2)``, as argparse does)."""
    parser = _parser()
    args = parser.parse_args(argv)
    limit_spinning()
    try:
        if args.output.exists() and not args.output.is_dir():
            raise UserError(f"'{args.output}' is a file; -o needs a folder for the page and the tables.")
        _check_packages()
        return _compare(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m opir_lightning.compare",
        description="Compare finished runs in tables, plots and one page, over seeds and picture by picture.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, or of folders of runs")
    add("-o", "--output", type=Path, default=Path("comparison"), metavar="DIR", help="default: %(default)s")
    add("--against", metavar="RUN|GROUP", help="what the others are compared with (default: the first group)")
    add(
        "--profile",
        choices=("published", "full"),
        default="published",
        help="by which rule the pictures are scored (default: %(default)s)",
    )
    add(
        "--pictures",
        type=_count,
        default=3,
        metavar="N",
        help="show for each group the N pictures on which it differs most (default: %(default)s)",
    )
    add("--latency", action="store_true", help="measure on this machine how long each network takes")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of pictures")
    return int(text)


def _check_packages() -> None:
    missing = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"The comparison needs {' and '.join(missing)}: pip install 'opir-lightning[compare]'.")


def _compare(args: argparse.Namespace) -> int:
    from opir_lightning.comparison.report import Options, compare

    done = compare(args.runs, Options(args.output, args.against, args.profile, args.pictures, args.latency))
    for item in done.left_out:
        print(f"left out: {item.path}: {item.reason}", file=sys.stderr)
    for warning in done.warnings:
        print(f"mind: {warning}", file=sys.stderr)
    for group in done.groups:
        seeds = f", seeds {', '.join(map(str, group.seeds))}" if group.seeds else ""
        print(f"{group.name}: {len(group.runs)} run{'s' if len(group.runs) > 1 else ''}{seeds}")
    print(f"the page is {done.files[0]}; {len(done.files) - 1} files with tables and plots lie beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
