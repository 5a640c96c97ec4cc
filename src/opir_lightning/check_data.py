"""Look at all pictures before they are used: ``python -m opir_lightning.check_data data.root=DIR [key=value ...]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from opir_lightning.config import check_keys, config_dir, explain_user_errors, register_schemas
from opir_lightning.errors import UserError
from opir_lightning.threads import limit_spinning

if TYPE_CHECKING:
    from opir_lightning.data.inspection import Findings, Listing

register_schemas()
limit_spinning()

# Pictures that were published, by the folder of the degraded ones where there are pairs, as in conf/.
PUBLISHED = {
    "BSD400": 400,  # Zhang et al. 2017 (DnCNN)
    "WED": 4744,  # Waterloo Exploration Database, Ma et al. 2017
    "CBSD68": 68,  # Martin et al. 2001, Roth and Black 2009
    "McMaster": 18,  # Zhang et al. 2011
    "Kodak24": 24,  # Franzen 1999
    "Urban100": 100,  # Huang et al. 2015
    "Set5": 5,  # Bevilacqua et al. 2012
    "Rain13K-train/input": 13712,  # Jiang et al. 2020 (MSPFN)
    "Rain100L/input": 100,  # Yang et al. 2017, the test set
    "Rain100H/input": 100,
    "ITS/hazy": 13990,  # RESIDE, Li et al. 2019
    "SOTS-indoor/hazy": 500,
    "SOTS-outdoor/hazy": 500,
    "O-HAZE/hazy": 45,  # Ancuti et al. 2018
    "GoPro/test/blur": 1111,  # Nah et al. 2017
    "LOL-v1/train/low": 485,  # Wei et al. 2018
    "LOL-v1/eval15/low": 15,
}


def check_data(config: DictConfig) -> int:
    """Look at every picture of every source; print a table, each fault by name and a summary.

    Returns:
        0 if all is well, 1 if anything is wrong.

    Raises:
        UserError: there is no data root, or nothing is below it.
    """
    from tqdm import tqdm

    from opir_lightning.data.inspection import inspect_set, scenes_of

    listings, absent = find_sets(check_keys(config))
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=sum(len(scenes_of(one)) for one in listings), desc="checking", unit="scene", disable=None) as bar,
    ):
        root = Path(config.data.root)
        findings = []
        for listing in listings:
            bar.set_postfix_str(listing.name)
            findings.append(inspect_set(listing, root, pool, bar.update))
    faults = {id(found): [*found.faults, *_surplus(found.listing)] for found in findings}
    overlaps = compare_roles(findings)
    _print_table(findings, [len(faults[id(found)]) for found in findings], title=str(root))
    return _print_faults(list(chain(*faults.values(), overlaps)), findings, absent)


def find_sets(plain: dict[str, Any]) -> tuple[list[Listing], list[str]]:
    """The sets that the configuration names: those below the data root, and the names of those that are not there.

    Raises:
        UserError: no root is given, it does not exist, or nothing was found.
    """
    from hydra.utils import instantiate

    from opir_lightning.data.inspection import list_sets

    root = plain["data"].get("root")
    if root is None:
        raise UserError("Say which folder holds the sets: data.root=DIR.")
    if not Path(root).is_dir():
        raise UserError(f"The data folder '{root}' does not exist; set data.root to the folder with the sets.")
    sources = {"train": plain["data"]["train"], "val": plain["data"]["val"], "test": plain["benchmark"]["sets"]}
    listings: list[Listing] = []
    absent: list[str] = []
    for role in ("train", "val", "test"):
        built = {name: instantiate(node, _convert_="all") for name, node in sources[role].items()}
        found, missing = list_sets(role, built, Path(root))
        listings += found
        absent += missing
    if not listings:
        raise UserError(f"None of the sets was found in '{root}'; expected at least one of {', '.join(absent)}.")
    return listings, list(dict.fromkeys(absent))


def compare_roles(findings: Sequence[Findings]) -> list[str]:
    """A sentence for each picture that is in two roles: trained on and held out, or for validation and for testing."""
    from opir_lightning.data.overlaps import find_overlaps

    sentences = []
    for role, others in (("train", ("val", "test")), ("val", ("test",))):
        mine = _thumbnails(findings, role)
        for other in others:
            for overlap in find_overlaps(mine, _thumbnails(findings, other)):
                turned = f" ({overlap.orientation})" if overlap.orientation else ""
                sentences.append(f"{role} {overlap.first} is {other} {overlap.second}{turned}")
    return sentences


def _thumbnails(findings: Sequence[Findings], role: str) -> dict[str, Any]:
    return {name: small for one in findings if one.listing.role == role for name, small in one.thumbnails.items()}


def _surplus(listing: Listing) -> list[str]:
    published = PUBLISHED.get(listing.folder)
    if published is None or len(listing.items) <= published:
        return []
    return [f"{listing.folder} holds {len(listing.items)} pictures, and only {published} were published"]


def _print_table(findings: Sequence[Findings], faults: Sequence[int], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("for", "set", "pictures", "input PSNR", "faults"):
        table.add_column(column, justify="left" if column in ("for", "set") else "right")
    for (listing, psnr, _, _), wrong in zip(findings, faults, strict=True):
        published = PUBLISHED.get(listing.folder)
        count = f"{len(listing.items)}" if published is None else f"{len(listing.items)} of {published}"
        table.add_row(listing.role, listing.name, count, "" if psnr is None else f"{psnr:.2f} dB", f"{wrong or ''}")
    Console().print(table)


def _print_faults(faults: Sequence[str], findings: Sequence[Findings], absent: Sequence[str]) -> int:
    if absent:
        print(f"not found: {', '.join(absent)}")
    for fault in faults:
        print(f"fault: {fault}")
    pictures = sum(len(found.listing.items) for found in findings)
    wrong = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}" if faults else "no faults"
    print(f"{pictures} pictures in {len(findings)} sets, {len(absent)} sets not found: {wrong}")
    return 1 if faults else 0


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="check_data")
@explain_user_errors
def main(config: DictConfig) -> None:
    """Entry point of the console script and of ``python -m``."""
    if status := check_data(config):
        sys.exit(status)


if __name__ == "__main__":
    main()
