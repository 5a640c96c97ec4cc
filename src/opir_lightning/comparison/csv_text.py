"""CSV that is no more than text, whatever opens it.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@``, the wide forms too, for a formula, which may
fetch or run something; and names of runs and sets may come from anybody. Such a text has an apostrophe before it, and
so has one that begins with apostrophes before such a character: who reads the file takes one away there, and has what
was written. Numbers stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

_GUARDED = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def csv_text(rows: Iterable[Sequence[str | float | None]]) -> str:
    """The rows of a CSV file; None is an empty cell, and texts cannot be taken for formulas."""
    text = io.StringIO()
    csv.writer(text).writerows([_guarded(cell) for cell in row] for row in rows)
    return text.getvalue()


def _guarded(cell: str | float | None) -> str | float | None:
    if isinstance(cell, str) and _GUARDED.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell
