"""Scores of a run from its files: results.json, the log of its validations; what is no number there is passed over."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from opir_lightning.errors import UserError
from opir_lightning.outside import parse_json, read_text

Origin = Literal["validation", "test", "while training"]
_LARGEST = 1e15  # no score, no step
PROFILES = ("published", "full")


class SetKey(NamedTuple):
    """A set of pictures; those of validations while training are parts of pictures, and never mixed with others."""

    origin: Origin
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.origin})"


class SetScores(NamedTuple):
    """Scores of one run on one set, by profile and name of the score; None is infinite.

    Attributes:
        means: over the pictures.
        pictures: of each picture by its name; empty where they are not known.
    """

    means: dict[str, dict[str, float | None]]
    pictures: dict[str, dict[str, dict[str, float | None]]]


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError("Its results.json is damaged: it is no JSON.") from error
    if not isinstance(content, dict):
        raise UserError("Its results.json is damaged: it is no table of names and values.")
    return content


def read_sets(raw: Any, origin: Origin) -> dict[SetKey, SetScores]:
    sets = {}
    for name, scores in raw.items() if isinstance(raw, dict) else ():
        means = _profiles(scores)
        pictures = scores.get("pictures") if isinstance(scores, dict) else None
        if means:
            by_name = {str(n): _profiles(p) for n, p in pictures.items()} if isinstance(pictures, dict) else {}
            sets[SetKey(origin, str(name))] = SetScores(means, by_name)
    return sets


def _profiles(raw: Any) -> dict[str, dict[str, float | None]]:
    """The numbers of a table of scores; whatever else a file says there is passed over."""
    if not isinstance(raw, dict):
        return {}
    return {profile: _scores(raw[profile]) for profile in PROFILES if isinstance(raw.get(profile), dict)}


def _scores(raw: dict[str, Any]) -> dict[str, float | None]:
    """Numbers by name. A PSNR that is null is infinite, unless the SSIM beside it is null too: both were no numbers."""
    scores: dict[str, float | None] = {str(name): float(v) for name, v in raw.items() if is_number(v)}
    for name, number in raw.items():
        beside = raw.get(str(name).replace("psnr", "ssim"), raw.get("ssim"))
        if number is None and str(name).startswith("psnr") and beside is not None:
            scores[str(name)] = None
    return scores


def is_number(value: Any) -> bool:
    """Whether it is, or says in words, a finite number, of a size that can be summed and drawn."""
    try:
        return not isinstance(value, bool | list | dict) and abs(float(value)) <= _LARGEST
    except (TypeError, ValueError, OverflowError):
        return False


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.is_file():
        return []
    try:
        return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError("Its log/metrics.csv is damaged.") from error


def validations(path: Path) -> list[dict[str, str]]:
    """What was logged of each validation."""
    return [row for row in read_rows(path) if is_number(row.get("val/psnr"))]


def last_validation(path: Path) -> dict[SetKey, SetScores]:
    """Scores of the last validation while training."""
    rows = validations(path)
    return validation_sets(rows[-1]) if rows else {}


def curve(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Steps done and PSNR; Lightning counts steps from 0."""
    return sorted(
        (int(float(row["step"])) + 1, float(row["val/psnr"]))
        for row in rows
        if is_number(row.get("step")) and is_number(row.get("val/psnr"))
    )


def validation_sets(values: Mapping[str, Any]) -> dict[SetKey, SetScores]:
    """Scores logged as ``val/<set>/psnr``, with the endings ``_coarse`` and ``_input`` too; they are ``published``."""
    sets: dict[SetKey, SetScores] = {}
    for key, value in values.items():
        found = re.fullmatch(r"val/(.+)/((?:psnr|ssim)(?:_coarse|_input)?)", str(key))
        if found is None or (not is_number(value) and str(value).lower() not in ("inf", "infinity")):
            continue
        scores = sets.setdefault(SetKey("while training", found[1]), SetScores({"published": {}}, {}))
        scores.means["published"][found[2]] = float(value) if is_number(value) else None
    return {key: scores for key, scores in sets.items() if "psnr" in scores.means["published"]}
