"""Sources: where the pairs of one task come from. A new folder or degradation is one more of these in a config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from opir_lightning.data.depth import relative_depth
from opir_lightning.data.images import DEPTH_SUFFIXES, PictureFile, list_images, to_tensor
from opir_lightning.data.pairing import check_names, folders_of, split_at_star
from opir_lightning.data.store import ImageStore
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
        depth: path of its depth map, if there is one.
    """

    name: str
    clean: Path
    degraded: Path | None = None
    depth: Path | None = None

    def files(self) -> list[PictureFile]:
        """All that has to be read for it."""
        pictures = [PictureFile(path) for path in (self.clean, self.degraded) if path is not None]
        return pictures if self.depth is None else [*pictures, PictureFile(self.depth, "depth")]


class Pairing(NamedTuple):
    """What two folders hold: pairs, and on either side the files that belong to none."""

    items: list[Item]
    lone_degraded: list[Path]
    lone_clean: list[Path]


class Source(Protocol):
    """What the mixture and the evaluation ask of a source.

    Attributes:
        task: name of the task.
        weight: share in the mixture, relative to the other sources.
        augmentation: how training crops are turned.
        margin: pixels around a crop that the degradation needs.
        degradation: what makes the degraded partners in training; None for pairs from files.
    """

    task: str
    weight: float
    augmentation: Augmentation
    margin: int
    degradation: Degradation | None

    def items(self, root: Path | None, *, embedded: str) -> list[Item]:
        """The pictures below ``root``; without a root, of that split of the embedded ones. Empty if none are there."""

    def degrade(
        self, clean: Tensor, item: Item, generator: torch.Generator, severity: float | None, depth: Tensor | None
    ) -> Tensor:
        """The degraded partner of ``clean`` ``(3, H, W)``; only called for items without a degraded file."""

    def depth(self, item: Item, store: ImageStore) -> np.ndarray | None:
        """The depth map of a whole picture, see `relative_depth`; None where there is none or nothing asks for it."""


@dataclass
class CleanFolder:
    """Clean pictures and a degradation.

    Args:
        task: name of the task.
        degradation: makes the degraded partner; any callable as described in `opir_lightning.degradations.base`.
        folders: folders of clean pictures below the data root; those that exist are used.
        weight: share in the mixture, relative to the other sources.
        augmentation: ``d4`` turns and flips the clean picture before it is degraded, so rain still falls.
        enlarged: whether training crops may be cut from an enlarged picture, where the mixture resizes them. The
            undamaged ones should not: to the eye they are blurred.
        depths: folders of depth maps, one for each of ``folders`` or none at all; a map has its picture's name and
            size (``.png``, ``.tif``, ``.npy``). Pictures without one get a plausible depth from the degradation.
        disparity: the maps are disparities (near is large), as stereo and most depth networks give them.
    """

    task: str
    degradation: Degradation
    folders: Sequence[str]
    weight: float = 1.0
    augmentation: Augmentation = "d4"
    enlarged: bool = True
    depths: Sequence[str] = ()
    disparity: bool = False
    margin: int = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.degradation):
            raise UserError(
                f"The degradation of a clean folder is {self.degradation!r}; it needs a node with a _target_, such as "
                "${degradations.noise}. Ranges are set there: degradations.noise.sigma_255=[0,30]."
            )
        if self.depths and len(self.depths) != len(self.folders):
            raise UserError(
                f"There are {len(self.depths)} folders of depth maps (`depths`) for {len(self.folders)} folders of "
                "pictures (`folders`); give one for each."
            )
        self.margin = getattr(self.degradation, "margin", 0)
        self._takes_depth = bool(getattr(self.degradation, "takes_depth", False))

    def items(self, root: Path | None, *, embedded: str) -> list[Item]:
        items = _clean_items(self.folders, root, embedded)
        if root is None or not self._takes_depth or not self.depths:
            return items
        maps = {
            (root / folder, path.stem): path
            for folder, depths in zip(self.folders, self.depths, strict=True)
            if (root / depths).is_dir()
            for path in list_images(root / depths, DEPTH_SUFFIXES)
        }
        return [item._replace(depth=maps.get((item.clean.parent, item.clean.stem))) for item in items]

    def degrade(
        self, clean: Tensor, item: Item, generator: torch.Generator, severity: float | None, depth: Tensor | None
    ) -> Tensor:
        if severity is None and not hasattr(self.degradation, "severity"):
            severity = float(torch.rand((), generator=generator))  # a function without a range of its own
        more = {} if depth is None else {"depth": depth}
        degraded = self.degradation(clean, generator=generator, severity=severity, **more)
        if not isinstance(degraded, Tensor) or degraded.shape != clean.shape or not degraded.is_floating_point():
            what = f"{tuple(degraded.shape)} {degraded.dtype}" if isinstance(degraded, Tensor) else repr(degraded)
            raise UserError(
                f"The degradation of the task '{self.task}' returned {what} for a picture of shape "
                f"{tuple(clean.shape)}; it must return a float tensor of the same shape."
            )
        return degraded

    def depth(self, item: Item, store: ImageStore) -> np.ndarray | None:
        if item.depth is None:
            return None
        values, shape = store.get(PictureFile(item.depth, "depth")), store[item.clean].shape[:2]
        if values.shape != shape:
            raise UserError(
                f"The depth map '{item.depth}' is {values.shape[1]}x{values.shape[0]} and its picture '{item.clean}' "
                f"{shape[1]}x{shape[0]} pixels; they must be of one size."
            )
        return relative_depth(values, disparity=self.disparity)


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
    degradation: None = field(init=False, default=None)

    def items(self, root: Path | None, *, embedded: str) -> list[Item]:
        return _clean_items(self.folders, root, embedded)

    def depth(self, item: Item, store: ImageStore) -> None:
        return None

    def degrade(
        self, clean: Tensor, item: Item, generator: torch.Generator, severity: float | None, depth: Tensor | None
    ) -> Tensor:
        pixels = clean.mul(255).round().byte().permute(1, 2, 0).numpy()
        return to_tensor(benchmark_noise(pixels, sigma_255=self.sigma_255, name=item.clean.name))


@dataclass
class PairedFolder:
    r"""Two folders with a degraded and a clean picture each.

    Args:
        task: name of the task.
        degraded: folder below the data root. One ``*`` in it stands for any part of a folder's name, one ``**/`` for
            any number of folders, none included: ``GoPro/train/*/blur``.
        clean: folder below the data root; a ``*`` or ``**/`` in it is what it is on the degraded side, without one all
            degraded folders share it.
        match: regular expression for the whole stem of a degraded file.
        partner: the stem of its clean file, ``\1`` being the first group of ``match``: ``(.+)_hazy`` and ``\1_GT``
            pair ``35_outdoor_hazy`` with ``35_outdoor_GT``.
        weight: share in the mixture.
        augmentation: ``flip`` is left-right only, so that recorded rain still falls.
        align: up to this many pixels the two pictures of a pair may be shifted against each other. When they are
            scored, the shift is found, and both are cut to what they share; training takes pairs as they are.

    Raises:
        UserError: ``match`` or ``partner`` is malformed, or the two folders do not have the same star.
    """

    task: str
    degraded: str
    clean: str
    match: str = "(.+)"
    partner: str = r"\1"
    weight: float = 1.0
    augmentation: Augmentation = "flip"
    align: int = 0
    margin: int = field(init=False, default=0)
    degradation: None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_names(self.match, self.partner)
        stars = [split_at_star(folder)[1] for folder in (self.degraded, self.clean)]
        if stars[1] and stars[0] != stars[1]:
            raise UserError(
                f"`clean` is '{self.clean}' and `degraded` '{self.degraded}': what '{stars[1]}' stands for in `clean` "
                "is taken from `degraded`, so that needs the same one."
            )

    def items(self, root: Path | None, *, embedded: str) -> list[Item]:
        if root is None or not self.is_there(root):
            return []
        items, missing, _ = self.pairing(root)
        if missing:
            raise UserError(
                f"{len(missing)} of {len(missing) + len(items)} pictures in '{root / self.degraded}' have no clean "
                f"partner in '{root / self.clean}', the first is '{missing[0].name}'; add the partners, or set `match` "
                f"(now '{self.match}') and `partner` (now '{self.partner}') so that they give the clean picture's name."
            )
        return items

    def is_there(self, root: Path) -> bool:
        """Whether there is a folder of degraded pictures below ``root``."""
        return bool(folders_of(self.degraded, root))

    def pairing(self, root: Path) -> Pairing:
        """Who belongs to whom, and who to nobody; a folder of degraded pictures must be there.

        Raises:
            UserError: one of the folders has no partner folder.
        """
        clean_folders = folders_of(self.clean, root)
        pictures = {text: list_images(folder) for text, folder in clean_folders.items()}
        by_stem = {text: {path.stem: path for path in paths} for text, paths in pictures.items()}
        before, star, after = split_at_star(self.clean)
        pairs, missing = [], []
        for text, folder in folders_of(self.degraded, root).items():
            shared = text if star else ""
            if shared not in by_stem:
                clean = root / f"{before}{shared}{after}"
                raise UserError(f"'{folder}' has no partner folder '{clean}'; add it or set `clean`.")
            for path in list_images(folder):
                found = re.fullmatch(self.match, path.stem)
                partner = by_stem[shared].get(found.expand(self.partner)) if found else None
                if partner is None:
                    missing.append(path)
                else:
                    pairs.append((text, partner, path))
        names = _unique([(Path(text, path.stem).as_posix(), Path(text, path.name)) for text, _, path in pairs])
        items = [Item(name, clean, path) for name, (_, clean, path) in zip(names, pairs, strict=True)]
        used = {item.clean for item in items}
        return Pairing(items, missing, [path for paths in pictures.values() for path in paths if path not in used])

    def depth(self, item: Item, store: ImageStore) -> None:
        return None

    def degrade(
        self, clean: Tensor, item: Item, generator: torch.Generator, severity: float | None, depth: Tensor | None
    ) -> Tensor:
        raise ValueError(f"{item.name}: a pair from files is not degraded again.")


def _clean_items(folders: Sequence[str], root: Path | None, embedded: str) -> list[Item]:
    where = {embedded: EMBEDDED / embedded} if root is None else {folder: root / folder for folder in folders}
    paths = [(name, path) for name, folder in where.items() if folder.is_dir() for path in list_images(folder)]
    names = _unique([(path.stem, Path(folder, path.name)) for folder, path in paths])
    return [Item(name, path, None) for name, (_, path) in zip(names, paths, strict=True)]


def _unique(pictures: Sequence[tuple[str, Path]]) -> list[str]:
    """The name of each picture, with its folder and suffix where another one has the same: scores go by the name."""
    count = Counter(name for name, _ in pictures)
    return [name if count[name] == 1 else path.as_posix() for name, path in pictures]
