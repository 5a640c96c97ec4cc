"""Who belongs to whom: folders with a star in their name, and rules for the names of partner files."""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath

from opir_lightning.errors import UserError


def check_names(match: str, partner: str) -> None:
    """Raise a `UserError` that names the setting if the rule cannot pair anything."""
    try:
        pattern = re.compile(match)
    except re.error as error:
        raise UserError(f"`match` is '{match}', which is no regular expression: {error}.") from error
    if not pattern.groups:
        raise UserError(
            f"`match` is '{match}'; put the part that the two names share in parentheses, as in '(.+)_hazy'."
        )
    # Templates can only be checked on a match, so one with as many groups, all empty, stands in.
    names = {number: f"?P<{name}>" for name, number in pattern.groupindex.items()}
    stand_in = re.match("".join(f"({names.get(group + 1, '')})" for group in range(pattern.groups)), "")
    assert stand_in is not None  # empty groups match anywhere
    try:
        stand_in.expand(partner)
    except (re.error, IndexError) as error:
        raise UserError(
            f"`partner` is '{partner}', which does not fit `match` '{match}' with its {pattern.groups} "
            f"group{'' if pattern.groups == 1 else 's'}: {error}."
        ) from error


def split_at_star(folder: str) -> tuple[str, str, str]:
    """A folder's name before its star, the star (``*``, ``**/`` or nothing) and the name after it."""
    folder = PurePosixPath(folder).as_posix()
    before, star, after = folder.partition("**/" if "**/" in folder else "*")
    if "*" in before + after:
        raise UserError(f"The folder '{folder}' has more than one star; it may have one '*' or one '**/'.")
    return before, star, after


def folders_of(folder: str, root: Path) -> dict[str, Path]:
    """The folders below ``root`` that a name stands for, sorted, by what stands for its star."""
    before, star, after = split_at_star(folder)
    if not star:
        return {"": root / before} if (root / before).is_dir() else {}
    found = sorted(path for path in root.glob(glob.escape(before) + star + glob.escape(after)) if path.is_dir())
    names = [path.relative_to(root).as_posix() for path in found]
    return {name[len(before) : len(name) - len(after)]: path for name, path in zip(names, found, strict=True)}
