"""Which pictures `restore` reads and which files it writes, decided before the first picture is touched."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opir_lightning.errors import UserError
from opir_lightning.files import kind_of
from opir_lightning.picture_files import FORMATS, SUFFIXES, UNSUPPORTED


class Job(NamedTuple):
    """One picture to restore and the files to write for it; None for those not asked for."""

    source: Path
    result: Path
    compare: Path | None
    uncertainty: Path | None
    values: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in self[1:] if path is not None]


def plan(
    inputs: Sequence[Path],
    output: Path,
    *,
    recursive: bool = False,
    kind: str = "keep",
    compare: bool = False,
    uncertainty: bool = False,
) -> tuple[list[Job], list[str]]:
    """What is to be done, in sorted order within each input; and a line for each input that cannot be restored.

    Args:
        inputs: pictures and folders of pictures.
        output: folder for the results, which may not be there yet.
        recursive: descend into the folders inside the given folders.
        kind: suffix of the results without its dot, or ``"keep"`` for that of the input.
        compare, uncertainty: whether these are wanted beside the results.

    Raises:
        UserError: a result would overwrite an input or another result, a folder holds no pictures, or the output is a
            file or one of the inputs.
    """
    if kind_of(output) not in (None, "folder"):
        raise UserError(f"'{output}' is a file; -o needs a folder, in which the results get the inputs' names.")
    jobs: dict[Path, Job] = {}
    failed: list[str] = []
    for given in inputs:
        if kind_of(given) == "folder":
            sources, refused = _pictures(given, output, recursive=recursive)
            failed += refused
            pairs = [(path, path.relative_to(given)) for path in sources]
        elif kind_of(given) == "file":
            pairs = [(given, Path(given.name))]
        else:
            pairs = []
            failed.append(f"{given}: {_why_no_file(given)}")
        for source, name in pairs:
            if kind != "keep":
                name = name.with_suffix(f".{kind}")
            job = _job(source, output / name, compare=compare, uncertainty=uncertainty)
            other = jobs.setdefault(job.result, job)
            if _real(other.source) != _real(source):
                raise UserError(f"'{other.source}' and '{source}' would both write '{job.result}'; restore them apart.")
    _check_outputs(list(jobs.values()))
    for given in inputs:
        if kind_of(given) == "folder" and _real(given) == _real(output):
            raise UserError(
                f"-o is the folder '{given}' of the pictures: the results would be taken for pictures the next time. "
                "Choose another folder with -o."
            )
    return list(jobs.values()), failed


def _check_outputs(jobs: list[Job]) -> None:
    inputs = {_real(job.source) for job in jobs}
    writers: dict[Path, Job] = {}
    for job in jobs:
        for path in job.outputs:
            if _real(path) in inputs:
                raise UserError(f"The result '{path}' would overwrite an input; choose another folder with -o.")
            other = writers.setdefault(path, job)
            if other is not job:
                raise UserError(f"'{other.source}' and '{job.source}' would both write '{path}'; restore them apart.")


def _pictures(folder: Path, output: Path, *, recursive: bool) -> tuple[list[Path], list[str]]:
    """The pictures of a folder, sorted, and a line for what is none although its name says so.

    Hidden files and folders and earlier results inside the folder are left out.
    """
    results = _real(output)
    inside = results != _real(folder)
    found: list[Path] = []
    paths, refused = _contents(folder, recursive=recursive)
    for path in paths:
        suffix = path.suffix.lower()
        if (
            path.name.startswith(".")
            or kind_of(path) == "folder"
            or (suffix not in FORMATS and suffix not in UNSUPPORTED)
        ):
            continue
        if inside and results in _real(path).parents:
            continue
        if kind_of(path) != "file":
            refused.append(f"{path}: {_why_no_file(path)}")
        elif suffix in UNSUPPORTED:
            refused.append(f"{path}: files of the kind '{suffix}' are not supported; convert it to one of {SUFFIXES}")
        else:
            found.append(path)
    if not found and not refused:
        hint = "" if recursive else "; with --recursive the folders inside it are searched too"
        raise UserError(f"The folder '{folder}' holds no pictures ({SUFFIXES}){hint}.")
    return found, refused


def _contents(folder: Path, *, recursive: bool) -> tuple[list[Path], list[str]]:
    """What is in a folder, sorted, and a line for each folder below it that cannot be read.

    Links to folders are followed, but no folder is read twice: under its own name if it has one here.
    """
    paths: list[Path] = []
    refused: list[str] = []
    seen: set[Path] = set()
    waiting = deque([folder])
    while waiting:
        here = waiting.popleft()
        if (real := _real(here)) in seen:
            continue
        seen.add(real)
        try:
            inside = sorted(here.iterdir())
        except OSError as error:
            refused.append(f"{here}: {error.strerror}")
            continue
        paths += inside
        below = (
            [path for path in inside if kind_of(path) == "folder" and not path.name.startswith(".")]
            if recursive
            else []
        )
        waiting.extendleft(path for path in reversed(below) if not path.is_symlink())
        waiting.extend(path for path in below if path.is_symlink())
    return sorted(paths), refused


def _why_no_file(path: Path) -> str:
    if kind_of(path) is not None:
        return "it is no regular file"
    try:
        path.lstat()
    except OSError as error:
        return "there is no such file or folder" if error.errno == errno.ENOENT else str(error.strerror)
    return "the link leads nowhere"


def _job(source: Path, result: Path, *, compare: bool, uncertainty: bool) -> Job:
    return Job(
        source,
        result,
        compare=result.with_name(f"{result.stem}_compare.png") if compare else None,
        uncertainty=result.with_name(f"{result.stem}_uncertainty.png") if uncertainty else None,
        values=result.with_name(f"{result.stem}_uncertainty.tiff") if uncertainty else None,
    )


def _real(path: Path) -> Path:
    """Without links; `Path.resolve` raises an error where they lead in a circle."""
    return Path(os.path.realpath(path))
