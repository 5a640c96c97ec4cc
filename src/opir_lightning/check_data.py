"""Look at all pictures before they are used: ``python -m opir_lightning.check_data data.root=DIR [key=value ...]``."""

from __future__ import annotations

import io
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
from opir_lightning.presets import count_sets, list_roles, suggest_layout
from opir_lightning.threads import limit_spinning

if TYPE_CHECKING:
    from opir_lightning.data.inspection import Findings, Listing

register_schemas()
limit_spinning()

# How many pictures or pairs were published: by the name of the source where there are pairs, as in conf/, by the folder
# or its last parts where there are none. Rain100L and Rain100H are those of 2017; a later edition has other 200 each.
PUBLISHED = {
    "BSD400": 400,  # Zhang et al. 2017 (DnCNN)
    "WED": 4744,  # Waterloo Exploration Database, Ma et al. 2017
    "WaterlooED": 4744,
    "Train/Denoise": 5144,  # BSD400 and WED
    "DIV2K_train_HR": 800,  # Agustsson and Timofte 2017
    "Flickr2K_HR": 2650,  # Lim et al. 2017 (EDSR)
    "CBSD68": 68,  # Martin et al. 2001, Roth and Black 2009
    "bsd68": 68,
    "cBSD68/original_png": 68,
    "McMaster": 18,  # Zhang et al. 2011
    "Kodak24": 24,  # Franzen 1999
    "Urban100": 100,  # Huang et al. 2015
    "Set5": 5,  # Bevilacqua et al. 2012
    "Rain13K-train": 13712,  # Jiang et al. 2020 (MSPFN)
    "RainTrainL": 200,  # Yang et al. 2017
    "Rain100L": 100,
    "Rain100H": 100,
    "ITS": 13990,  # RESIDE, Li et al. 2019: 1399 scenes
    "OTS": 72135,  # 2061 scenes
    "SOTS-indoor": 500,  # 50 scenes
    "SOTS-outdoor": 500,  # 492 scenes
    "O-HAZE": 45,  # Ancuti et al. 2018
    "GoPro-train": 2103,  # Nah et al. 2017
    "GoPro": 1111,
    "LOL-v1-train": 485,  # Wei et al. 2018
    "LOL": 15,
    "Levin": 32,  # Levin et al. 2009: 4 pictures under 8 kernels
    "PolyU": 100,  # Xu et al. 2018, cropped
}


_BY_NAME = {name.casefold(): count for name, count in PUBLISHED.items()}


def check_data(config: DictConfig) -> int:
    """Look at every picture of every source; print a table, each fault by name and a summary.

    Returns:
        0 if all is well, 1 if anything is wrong.

    Raises:
        UserError: there is no data root, or nothing is below it.
    """
    from tqdm import tqdm

    from opir_lightning.data.inspection import inspect_set, scenes_of

    plain = check_keys(config)
    listings, absent = find_sets(plain)
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
    _print_hints(listings, plain["tasks"], root)
    return _print_faults(list(chain(*faults.values(), overlaps)), findings, absent)


def find_sets(plain: dict[str, Any]) -> tuple[list[Listing], list[str]]:
    """The sets that the configuration names: those below the data root, and the names of those that are not there.

    Raises:
        UserError: no root is given, it does not exist, or nothing was found.
    """
    root = plain["data"].get("root")
    if root is None:
        raise UserError("Say which folder holds the sets: data.root=DIR.")
    if not Path(root).is_dir():
        raise UserError(f"The data folder '{root}' does not exist; set data.root to the folder with the sets.")
    listings, absent = list_roles(plain, Path(root), ("train", "val", "test"))
    if not listings:
        wanted = f"None of the sets was found in '{root}'; expected at least one of {', '.join(absent)}."
        raise UserError(f"{wanted} {suggest_layout(Path(root))}".strip())
    return listings, absent


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
    published = published_count(listing)
    if published is None or len(listing.items) <= published:
        return []
    return [f"{listing.folder} holds {len(listing.items)} pictures, and only {published} were published"]


def _print_table(findings: Sequence[Findings], faults: Sequence[int], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("for", "set", "pictures", "input PSNR", "faults"):
        table.add_column(column, justify="left" if column in ("for", "set") else "right")
    for found, wrong in zip(findings, faults, strict=True):
        listing, psnr = found.listing, found.psnr
        published = published_count(listing)
        count = f"{len(listing.items)}" if published is None else f"{len(listing.items)} of {published}"
        table.add_row(
            listing.role,
            listing.name,
            f"{count}, all grey" if found.grey else count,
            "" if psnr is None else f"{psnr:.2f} dB",
            f"{wrong or ''}",
        )
    Console().print(table)


def published_count(listing: Listing) -> int | None:
    """How many pictures the set has that a source's name, or the last parts of a folder's, stands for."""
    parts = listing.name.split("/")
    tails = ["/".join(parts[start:]) for start in range(len(parts))]
    return next((_BY_NAME[tail.casefold()] for tail in tails if tail.casefold() in _BY_NAME), None)


def _print_hints(listings: Sequence[Listing], tasks: Sequence[str], root: Path) -> None:
    """What is there and will not be used, and what to run where a folder has another preset's layout."""
    unused = [one for one in listings if one.role == "train" and not set(one.tasks) & set(tasks)]
    if unused:
        named = ", ".join(f"{listing.name} ({', '.join(dict.fromkeys(listing.tasks))})" for listing in unused)
        print(f"not trained on, being of none of the tasks {', '.join(tasks)}: {named}")
    if count_sets(listings, ["train"]) == 0:
        print("no training set was found")
    if min(count_sets(listings, ["train"]), count_sets(listings, ["test"])) == 0:
        hint = suggest_layout(root, found=count_sets(listings, ["train", "test"]))
        print(hint, end="\n" if hint else "")


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may have characters that a terminal lacks
    if status := check_data(config):
        sys.exit(status)


if __name__ == "__main__":
    main()
