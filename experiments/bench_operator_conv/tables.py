"""Markdown tables of one run's results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cases import BACKWARD, BOTH, FORWARD, IMAGE_GRADIENT, TAPS_GRADIENT, setting_of
from targets import targets_of

QUANTITIES = (FORWARD, BACKWARD, BOTH, TAPS_GRADIENT, IMAGE_GRADIENT)
MIB = 2**20


def document(results: dict[str, Any]) -> str:
    """Everything: where the numbers are from, targets, one table for each series, what was not timed and why."""
    parts = [source(results), targets(results)]
    for name in dict.fromkeys(case["series"] for case in results["cases"]):
        parts.append(series(name, [case for case in results["cases"] if case["series"] == name]))
    parts.append(not_timed(results))
    return "\n\n".join(part for part in parts if part)


def source(results: dict[str, Any]) -> str:
    """One sentence of where the numbers are from."""
    meta = results["meta"]
    copy = f"{meta['copy_bytes_per_second'] / 1e9:.4g} GB/s"
    at_the_end = meta.get("copy_bytes_per_second_at_the_end")
    if at_the_end:
        copy += f" at the start, {at_the_end / 1e9:.4g} at the end"
    kept = ("torch", "triton", "cuda", "python")
    versions = ", ".join(f"{name} {meta[name]}" for name in kept if meta.get(name))
    return (
        f"{meta['device']}; processor {meta['processor']}, {meta['threads']} threads; allocator {meta['allocator']}; "
        f"{versions}; commit {meta['commit'] or 'unknown'}; {meta['date']}. Copy: {copy}."
    )


def targets(results: dict[str, Any]) -> str:
    """The figures with a target, and whether they meet it."""
    every = targets_of(results)
    rows = []
    for target in every:
        if target.value is not None:
            sign = "at least" if target.at_least else "at most"
            answer = "yes" if target.passed else "**no**"
            rows.append((target.name, str(target.setting), f"{target.value:.2f}", f"{sign} {target.limit:g}", answer))
    missing = len(every) - len(rows)
    note = f"{missing} of {len(every)} figures with a target were not measured." if missing else ""
    table = markdown(("figure", "setting", "measured", "target", "met"), rows) if rows else ""
    return "\n\n".join(part for part in (table, note) if part)


def series(name: str, cases: Sequence[dict[str, Any]]) -> str:
    """One table for each setting of a series."""
    parts = [f"### Series `{name}`"]
    for s in dict.fromkeys(setting_of(case["setting"]) for case in cases):
        timed = [case for case in cases if case["status"] == "timed" and setting_of(case["setting"]) == s]
        if not timed:
            continue
        by = {(case["way"], case["quantity"]): case for case in timed}
        quantities = [q for q in QUANTITIES if any(case["quantity"] == q for case in timed)]
        rows = [
            (way, *(_time(by.get((way, q))) for q in quantities), *(_memory(by.get((way, q))) for q in (FORWARD, BOTH)))
            for way in dict.fromkeys(case["way"] for case in timed)
        ]
        header = ("", *quantities, f"MiB, {FORWARD}", f"MiB, {BOTH}")
        parts.append(f"{s}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def not_timed(results: dict[str, Any]) -> str:
    """What was skipped, refused or failed, one row for each reason."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for case in results["cases"]:
        if case["status"] != "timed":
            key = case["status"], case["way"], case["quantity"], case["reason"]
            found.setdefault(key, []).append(str(setting_of(case["setting"])))
    merged: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = {}
    for (status, way, quantity, reason), settings in found.items():
        merged.setdefault((status, way, reason, tuple(settings)), []).append(quantity)
    rows = [
        (
            status,
            way,
            ", ".join(quantities),
            settings[0] + (f" and {len(settings) - 1} more" if settings[1:] else ""),
            reason,
        )
        for (status, way, reason, settings), quantities in merged.items()
    ]
    return "### Not timed\n\n" + markdown(("", "", "quantity", "setting", "reason"), rows) if rows else ""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _time(case: dict[str, Any] | None) -> str:
    """Milliseconds, half of the distance of the quartiles, times the copy of the bytes."""
    if case is None:
        return "–"
    low, high = case["quartiles_ms"]
    return f"{_three(case['median_ms'])} ± {_three((high - low) / 2)} ms ({_three(case['copy_ratio'])})"


def _memory(case: dict[str, Any] | None) -> str:
    return f"{case['peak_bytes'] / MIB:.0f}" if case and "peak_bytes" in case else "–"


def _three(value: float) -> str:
    """Three digits, no exponent: 12300, 123, 12.3, 0.123."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.4f}"
