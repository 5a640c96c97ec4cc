"""One page that shows a comparison: no request leaves it, and what comes from runs is never more than text."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from opir_lightning.comparison.pictures import Shown
from opir_lightning.comparison.plots import Plot
from opir_lightning.comparison.runs import LeftOut
from opir_lightning.comparison.tables import Cell, Table

_HERE = Path(__file__).parent
_LONG = 60  # characters, from which a cell may be broken


class Section(NamedTuple):
    """A headed part of the page."""

    title: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    pictures: Sequence[Shown] = ()
    notes: Sequence[str] = ()


def write_page(
    title: str,
    headline: Sequence[str],
    warnings: Sequence[str],
    left_out: Sequence[LeftOut],
    sections: Sequence[Section],
    foot: str,
) -> str:
    """The page as HTML, all of it in one file.

    Args:
        title: of the page.
        headline: sentences that stand first.
        warnings: what to know before believing the numbers.
        left_out: folders that take no part, with their reasons.
        sections: in their order; empty ones are left out.
        foot: where the numbers come from.
    """
    style, script = (_HERE.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # Even if some text were taken for more than text: a browser that keeps to this runs and asks for nothing else.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = [s for s in sections if s.tables or s.plots or s.pictures or s.notes]
    links = "".join(f'<li><a href="#part{n}">{escape(s.title)}</a></li>' for n, s in enumerate(filled))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',  # otherwise a browser asks the server for one
        f"<title>{escape(title)}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{escape(title)}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in headline),
        _warnings(warnings, left_out),
        f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav></header>',
        "<main>",
        *(_section(n, s) for n, s in enumerate(filled)),
        "</main>",
        f"<footer>{escape(foot)}</footer>",
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _warnings(warnings: Sequence[str], left_out: Sequence[LeftOut]) -> str:
    boxes = [
        (heading, lines)
        for heading, lines in (
            ("Mind", warnings),
            ("Left out", [f"{item.path}: {item.reason}" for item in left_out]),
        )
        if lines
    ]
    return "".join(
        f'<section class="warning"><strong>{heading}</strong><ul>{_items(lines)}</ul></section>'
        for heading, lines in boxes
    )


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _section(number: int, section: Section) -> str:
    content = [f'<section id="part{number}"><h2>{escape(section.title)}</h2>']
    content += [_table(table) for table in section.tables]
    if section.plots:
        content += ['<div class="plots">', *(_plot(plot) for plot in section.plots), "</div>"]
    content += [_pictures(shown) for shown in section.pictures]
    if section.notes:
        content.append(f'<ul class="note">{_items(section.notes)}</ul>')
    return "\n".join([*content, "</section>"])


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(column)}</button></th>'
        for column in table.columns
    )
    body = "\n".join(_row(row) for row in table.rows)
    foot = f"<tfoot>{_row(table.last)}</tfoot>" if table.last else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f"<h3>{escape(table.title)}</h3>\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>{foot}</table></div>{note}"
    )


def _row(cells: Sequence[Cell]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{escape(first.text)}</th>{"".join(map(_cell, others))}</tr>'


def _cell(cell: Cell) -> str:
    classes = [
        name
        for name, holds in (
            ("number", cell.number is not None),
            ("best", cell.best),
            ("long", len(cell.text) > _LONG),
        )
        if holds
    ]
    value = "" if cell.number is None else f' data-value="{_javascript(cell.number)}"'
    named = f' class="{" ".join(classes)}"' if classes else ""
    return f"<td{named}{value}>{escape(cell.text)}</td>"


def _javascript(number: float) -> str:
    return str(number) if math.isfinite(number) else "Infinity"


def _plot(plot: Plot) -> str:
    data = base64.b64encode(plot.svg).decode()
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(plot.text)}">'
        f"<figcaption>{escape(plot.title)}</figcaption></figure>"
    )


def _pictures(shown: Shown) -> str:
    labels = "".join(f"<span>{escape(label)}</span>" for label in shown.labels)
    rows = "".join(
        f'<img class="{kind}" src="{data}" alt="{escape(f"{shown.name}, {label}{words}")}">'
        for kind, words, row in (("whole", "", shown.whole), ("detail", ", a part magnified", shown.detail))
        for label, data in zip(shown.labels, row, strict=True)
    )
    return (
        f"<h3>{escape(f'{shown.key}: {shown.name}')}</h3>"
        f'<figure><div class="four">{labels}{rows}</div><figcaption>{escape(shown.words)}. '
        "Below, four times as large, the part on which the two differ most.</figcaption></figure>"
    )
