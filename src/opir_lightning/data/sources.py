"""Sources: where the pairs of one task come from. A new folder or degradation is one more of these in a config."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from opir_lightning.data.images import ImageStore, list_images, to_tensor
from opir_lightning.degradations.base import Degradation
from opir_lightning.degradations.noise import benchmark_noise
from opir_lightning.errors import UserError

EMBEDDED = Path(__file__).parent / "demo"

Augmentation = Literal["d4", "flip", "none"]


class Item(NamedTuple):
    """One picture of a source.

    Attributes:
        name: for reports; unique in its source.
        clean: path of the clean picture.
        degraded: path of its degraded partner; None where it is made.
    """

    name: str
    clean: Path
    degraded: Path | None


class Pairing(NamedTuple):
    """What two folders hold: pairs, and on either side the files that belong to none."""

    items: list[Item]
    lone_degraded: list[Path]
    lone_clean: list[Path]


class Source(Protocol):
    """What the mixture and the evaluation ask of a source."""

    task: str
    weight: float
    augmentation: Augmentation
    margin: int

    def items(self, root: Path | None, *, embedded: str) -> list[Item]:
        """The pictures below ``root``; without a root, of that split of the embedded ones. Empty if none are there."""

    def degrade(self, clean: Tensor, item: Item, generator: torch.Generator, severity: float | None) -> Tensor:
        """The degraded partner of ``clean`` ``(3, H, W)``; only called for items without a degraded file."""


@dataclass
class CleanFolder:
    """Clean pictures and a degradation.

    Args:
        task: name of the task.
        degradation: makes the degraded partner.
        folders: folders of clean pictures below the data root; those that exist are used.
        weight: share in the mixture, relative to the other sources.
        augmentation: ``d4`` turns and flips the clean picture before it is degraded, so rain still falls.
    """

    task: str
    degradation: Degradation
    folders: Sequence[str]
    weight: float = 1.0
    augmentation: Augmentation = "d4"
    margin: int = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.degradation):
            raise UserError(
                f"The degradation of a clean folder is {self.degradation!r}; it needs a node with a _target_, such as "
                "${degradations.noise}. Ranges are set there: degradations.noise.sigma_255=[0,30]."
            )
        self.margin = self.degradation.margin

    def items(self, root: Path | None, *, embedded: str) -> list[Item]:
        return _clean_items(self.folders, root, embedded)

    def degrade(self, clean: Tensor, item: Item, generator: torch.Generator, severity: float | None) -> Tensor:
        return self.degradation(clean, generator=generator, severity=severity)


@dataclass
class BenchmarkNoise:
    """Clean pictures with the noise of the test protocol: clipped, truncated to 8 bits, seeded by the file name.

    Args:
        sigma_255: standard deviation in 8-bit grey levels: 15, 25 or 50.
        folders: folders of clean pictures below the data root.
        task: name of the task.
    """

    sigma_255: float
    folders: Sequence[str]
    task: str = "noise"
    weight: float = 1.0
    augmentation: Augmentation = "d4"
    margin: int = 0

    def items(self, root: Path | None, *, embedded: str) -> list[Item]:
        return _clean_items(self.folders, root, embedded)

    def degrade(self, clean: Tensor, item: Item, generator: torch.Generator, severity: float | None) -> Tensor:
        pixels = clean.mul(255).round().byte().permute(1, 2, 0).numpy()
        return to_tensor(benchmark_noise(pixels, sigma_255=self.sigma_255, name=item.clean.name))


@dataclass
class PairedFolder:
    """Two folders with a degraded and a clean picture each.

    Args:
        task: name of the task.
        degraded: folder below the data root.
        clean: folder below the data root.
        match: regular expression; its first group, found in the stem of a degraded file, is the stem of the clean one.
        weight: share in the mixture.
        augmentation: ``flip`` is left-right only, so that recorded rain still falls.
    """

    task: str
    degraded: str
    clean: str
    match: str = "(.+)"
    weight: float = 1.0
    augmentation: Augmentation = "flip"
    margin: int = field(init=False, default=0)

    def items(self, root: Path | None, *, embedded: str) -> list[Item]:
        if root is None or not (root / self.degraded).is_dir():
            return []
        items, missing, _ = self.pairing(root)
        if missing:
            raise UserError(
                f"{len(missing)} of {len(missing) + len(items)} pictures in '{root / self.degraded}' have no clean "
                f"partner in '{root / self.clean}', the first is '{missing[0].name}'; add the partners, or set `match` "
                f"(now '{self.match}') so that its first group is the clean picture's name."
            )
        return items

    def pairing(self, root: Path) -> Pairing:
        """Who belongs to whom, and who to nobody; the folder of the degraded pictures must be there.

        Raises:
            UserError: the other folder is missing.
        """
        clean_folder = root / self.clean
        if not clean_folder.is_dir():
            raise UserError(f"'{root / self.degraded}' has no partner folder '{clean_folder}'; add it or set `clean`.")
        pictures = list_images(clean_folder)
        clean = {path.stem: path for path in pictures}
        items, missing = [], []
        for path in list_images(root / self.degraded):
            found = re.fullmatch(self.match, path.stem)
            if found and found[1] in clean:
                items.append(Item(path.stem, clean[found[1]], path))
            else:
                missing.append(path)
        used = {item.clean for item in items}
        return Pairing(items, missing, [path for path in pictures if path not in used])

    def degrade(self, clean: Tensor, item: Item, generator: torch.Generator, severity: float | None) -> Tensor:
        raise ValueError(f"{item.name}: a pair from files is not degraded again.")


def _clean_items(folders: Sequence[str], root: Path | None, embedded: str) -> list[Item]:
    where = [EMBEDDED / embedded] if root is None else [root / folder for folder in folders]
    return [Item(path.stem, path, None) for folder in where if folder.is_dir() for path in list_images(folder)]


def read_pair(item: Item, store: ImageStore) -> tuple[np.ndarray, np.ndarray | None]:
    """Clean and, where there is a file of it, degraded pixels; ``(H, W, 3)`` uint8.

    Raises:
        UserError: the two are not of the same size.
    """
    clean = store[item.clean]
    if item.degraded is None:
        return clean, None
    degraded = store[item.degraded]
    if clean.shape != degraded.shape:
        raise UserError(
            f"'{item.degraded}' is {degraded.shape[1]}x{degraded.shape[0]} and its clean partner '{item.clean}' "
            f"{clean.shape[1]}x{clean.shape[0]} pixels; a pair must be of one size."
        )
    return clean, degraded


def evaluation_pair(source: Source, item: Item, store: ImageStore, severity: float | None) -> tuple[Tensor, Tensor]:
    """A whole picture and its degraded partner, the same at every call: randomness is seeded by the file name.

    Returns:
        degraded and clean, ``(3, H, W)`` float32 in [0, 1].
    """
    clean_pixels, degraded_pixels = read_pair(item, store)
    clean = to_tensor(clean_pixels)
    if degraded_pixels is not None:
        return to_tensor(degraded_pixels), clean
    generator = torch.Generator().manual_seed(zlib.crc32(item.clean.name.encode()))
    return source.degrade(clean, item, generator, severity), clean
