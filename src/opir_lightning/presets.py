"""The presets of conf/data: which of them has the layout that a folder has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra

from opir_lightning.config import build, check_keys, config_dir, register_schemas

if TYPE_CHECKING:
    from opir_lightning.data.inspection import Listing, Role

register_schemas()
_PLACES = {"train": "data.train", "val": "data.val", "test": "benchmark.sets"}  # of the sources of a role


def list_roles(plain: dict[str, Any], root: Path, roles: Sequence[Role]) -> tuple[list[Listing], list[str]]:
    """The sets of a checked configuration that are below a root, and the names of those that are not."""
    from opir_lightning.data.inspection import list_sets

    listings: list[Listing] = []
    absent: list[str] = []
    for role in roles:
        group, _, key = (place := _PLACES[role]).partition(".")
        built = {name: build(node, f"{place}.{name}") for name, node in plain[group][key].items()}
        found, missing = list_sets(role, built, root)
        listings += found
        absent += missing
    return listings, list(dict.fromkeys(absent))


def suggest_layout(root: Path, *, found: int = 0, roles: Sequence[Role] = ("train", "test")) -> str:
    """A sentence that names the preset of conf/ whose layout a folder has, with the settings that choose it.

    Args:
        root: the data root.
        found: so many sets of these roles are there with the settings of now; only a preset with more is named.
        roles: what counts; settings that matter to others are not named.

    Returns:
        The sentence, empty if there is no such preset.
    """
    best, count, total = max(_layouts(root, roles), key=lambda layout: layout[1])
    if count <= found:
        return ""
    again = [f"data={best}"] if "train" in roles else []
    again += [f"benchmark={_benchmark_of(best)}"] if "test" in roles else []
    sets = f"{count} of its {total} sets {'is' if count == 1 else 'are'} there"
    return f"This looks like the layout of '{best}': {sets}; run again with {' '.join(again)}."


def _layouts(root: Path, roles: Sequence[Role]) -> list[tuple[str, int, int]]:
    """Each preset with how many of its sets are below the root, and how many it has."""
    layouts = []
    for name in _presets("data"):
        listings, absent = list_roles(_preset(name), root, roles)
        layouts.append((name, count_sets(listings, roles), len(listings) + len(absent)))
    return layouts


@cache
def _preset(name: str) -> dict[str, Any]:
    """The resolved configuration of a preset and its benchmark; not to be changed."""
    # A command has Hydra set up, with this folder; from Python it may not be.
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else hydra.initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = hydra.compose("check_data", [f"data={name}", f"benchmark={_benchmark_of(name)}", "run_dir=."])
    return check_keys(config)


def _presets(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(config_dir()) / group).glob("*.yaml") if not path.stem.startswith("_"))


def _benchmark_of(preset: str) -> str:
    return preset if preset in _presets("benchmark") else "public"


def count_sets(listings: Sequence[Listing], roles: Sequence[Role]) -> int:
    """How many sets of these roles hold pictures."""
    return sum(bool(listing.items) for listing in listings if listing.role in roles)
