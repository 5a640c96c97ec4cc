"""What is wrong with sets of pictures before anything is trained on them or scored: files, formats and pairs."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from opir_lightning.data.images import IMAGE_SUFFIXES, list_images, open_image, read_rgb
from opir_lightning.data.overlaps import thumbnail
from opir_lightning.data.sources import Item, PairedFolder, Source
from opir_lightning.errors import UserError

Role = Literal["train", "val", "test"]

ORIENTATION, UPRIGHT = 0x0112, 1  # the EXIF tag and the value of an upright picture

KINDS = {
    "1": "black and white",
    "L": "greyscale",
    "LA": "greyscale with an alpha channel",
    "P": "palette",
    "PA": "palette with an alpha channel",
    "RGBA": "RGB with an alpha channel",
    "F": "floating-point",
    "CMYK": "CMYK",
}


class Listing(NamedTuple):
    """A set that is there: what its folders hold, by names alone.

    Attributes:
        role: what it is used for.
        name: of the source for pairs, of the folder for clean pictures (which several sources may share).
        folder: below the data root; of the degraded pictures where there are such.
        items: the pictures, and the pairs whose two names match.
        faults: one sentence each.
        tasks: of the sources that use it.
        identical: whether a pair of equal pictures is what the set is about.
    """

    role: Role
    name: str
    folder: str
    items: list[Item]
    faults: list[str]
    tasks: list[str]
    identical: bool = False


class Scene(NamedTuple):
    """A clean picture and its degraded partners, looked at.

    Attributes:
        name: of the clean file, below the data root.
        small: its thumbnail, see `overlaps.thumbnail`; None if it cannot be read.
        digests: of the pixels, by file name: of the degraded pictures, or of the clean one where there are none.
        psnr: of the degraded pictures against the clean one, in dB.
        grey: names of the files that are greyscale of 8 bits.
        faults: one sentence each.
    """

    name: str
    small: np.ndarray | None
    digests: dict[str, bytes]
    psnr: list[float]
    grey: list[str]
    faults: list[str]


class Findings(NamedTuple):
    """A set, looked at.

    Attributes:
        listing: the set.
        psnr: mean over its pairs in dB; None without pairs.
        faults: one sentence each, those of the listing included.
        thumbnails: of its clean pictures, by file name below the data root.
        grey: whether all its pictures are greyscale, as some sets were published; among others, one is a fault.
    """

    listing: Listing
    psnr: float | None
    faults: list[str]
    thumbnails: dict[str, np.ndarray]
    grey: bool


def list_sets(role: Role, sources: Mapping[str, Source], root: Path) -> tuple[list[Listing], list[str]]:
    """What the folders of the sources hold, each folder once; nothing is decoded.

    Returns:
        The sets that are there, and those that are not: folders below the root, or names of sources.
    """
    found: dict[tuple[str, str], Listing] = {}
    absent: list[str] = []
    for name, source in sources.items():
        if isinstance(source, PairedFolder):
            places = [(source.degraded, source.clean)]
        else:
            places = [(folder, "") for folder in getattr(source, "folders", [""])]
        for place in places:
            folder = place[0] or name
            if place in found:
                if source.task not in found[place].tasks:
                    found[place].tasks.append(source.task)
            elif folder not in absent:
                listing = _list_set(role, name, source, place[0], root)
                if listing is None:
                    absent.append(folder)
                else:
                    found[place] = listing
    return list(found.values()), absent


def _list_set(role: Role, name: str, source: Source, folder: str, root: Path) -> Listing | None:
    """One set, or None if it is not there; ``folder`` is empty for a kind of source that is not known here."""
    title = name if isinstance(source, PairedFolder) else folder or name
    items: list[Item] = []
    faults: list[str] = []
    try:
        if isinstance(source, PairedFolder):
            if not source.is_there(root):
                return None
            items, lone_degraded, lone_clean = source.pairing(root)
            faults = [f"{_short(path, root)} has no clean partner in {source.clean}" for path in lone_degraded]
            faults += [f"{_short(path, root)} has no degraded partner in {folder}" for path in lone_clean]
            places = {path.parent for item in items for path in (item.clean, item.degraded) if path is not None}
        elif folder:
            if not (root / folder).is_dir():
                return None
            items = [Item(path.stem, path) for path in list_images(root / folder)]
            places = {root / folder}
        else:
            items, places = source.items(root, embedded="heldout"), set()
            if not items:
                return None
        faults += [f"{_short(path, root)} is a link that leads nowhere" for path in _dead_links(places)]
        if not items and not faults:
            faults = [f"{folder}: the folder holds no pictures"]
    except (UserError, OSError) as error:
        faults = [f"{folder or name}: {error}"]
    return Listing(role, title, folder or name, items, faults, [source.task], identical=source.task == "none")


def _dead_links(folders: Iterable[Path]) -> list[Path]:
    """Links named like pictures whose file is missing, or which go round in circles; nothing else passes them over."""
    return [
        path
        for folder in sorted(folders)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_symlink() and not path.exists()
    ]


def scenes_of(listing: Listing) -> dict[Path, list[Path]]:
    """The degraded partners of each clean picture; so each file is decoded once."""
    scenes: dict[Path, list[Path]] = {}
    for item in listing.items:
        scenes.setdefault(item.clean, []).extend([] if item.degraded is None else [item.degraded])
    return scenes


def inspect_set(listing: Listing, root: Path, pool: Executor, advance: Callable[[], object]) -> Findings:
    """Decode every picture of a set and compare each pair.

    Args:
        listing: the set.
        root: the data root, for the names.
        pool: threads that decode.
        advance: called after each clean picture.
    """
    faults, grey, values = list(listing.faults), [], []
    thumbnails: dict[str, np.ndarray] = {}
    first: dict[bytes, str] = {}
    scenes = scenes_of(listing)
    decoded = pool.map(lambda scene: look_at(scene[0], scene[1], root, identical=listing.identical), scenes.items())
    for scene in decoded:
        faults += scene.faults
        grey += scene.grey
        values += scene.psnr
        if scene.small is not None:
            thumbnails[scene.name] = scene.small
        for name, digest in scene.digests.items():
            if first.setdefault(digest, name) != name:
                faults.append(f"{name} is the same picture as {first[digest]}, pixel for pixel")
        advance()
    all_grey = 0 < len(grey) == sum(1 + len(partners) for partners in scenes.values())
    if not all_grey:
        faults += [f"{name} is {KINDS['L']}, not 8-bit RGB" for name in grey]
    return Findings(listing, sum(values) / len(values) if values else None, faults, thumbnails, all_grey)


def look_at(clean: Path, degraded: Sequence[Path], root: Path, *, identical: bool = False) -> Scene:
    """Decode a clean picture and its degraded partners and compare them.

    Args:
        clean: file.
        degraded: files; none where the degraded partner is made.
        root: the data root, for the names.
        identical: equal partners are no fault.
    """
    name = _short(clean, root)
    target, turn, grey, faults = _decode(clean, name)
    greys = [name] if grey else []
    if turn != UPRIGHT:
        faults.append(f"{name} is stored turned or mirrored: its EXIF orientation, {turn}, is not applied")
    digests, values = {}, []
    if target is not None and not degraded:
        digests[name] = _digest(target)
    for path in degraded:
        partner = _short(path, root)
        pixels, other_turn, grey, more = _decode(path, partner)
        faults += more
        greys += [partner] if grey else []
        if pixels is None:
            continue
        digests[partner] = _digest(pixels)
        if target is None:
            continue
        if other_turn != turn:
            faults.append(f"{partner} has the EXIF orientation {other_turn} and its clean partner {name} {turn}")
        if pixels.shape != target.shape:
            faults.append(f"{partner} is {_size(pixels)} and its clean partner {name} {_size(target)} pixels")
            continue
        value = psnr(pixels, target)
        if value == math.inf and not identical:
            faults.append(f"{partner} is not degraded: its clean partner {name} has the same pixels")
        else:
            values.append(value)
    return Scene(name, None if target is None else thumbnail(target), digests, values, greys, faults)


def psnr(degraded: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two ``(H, W, 3)`` uint8 pictures: over all of both, for values of range 1.

    .. math:: -10 \\log_{10} \\operatorname{mean}\\bigl((d - c)^2 / 255^2\\bigr)
    """
    difference = degraded.astype(np.int32) - clean
    error = float(np.mean(difference * difference, dtype=np.float64)) / 255**2
    return -10 * math.log10(error) if error > 0 else math.inf


def unusual_kind(image: Image.Image) -> str | None:
    """What a picture that is just opened is instead of 8-bit RGB; None if it is that."""
    # Pillow gives RGB of 16 bits as "RGB", cut to 8; only the raw mode of the data still tells.
    if (count := getattr(image, "n_frames", 1)) > 1:
        return f"a file of {count} pictures"
    deep = image.mode.startswith("I") or any(";16" in str(part[3]) for part in getattr(image, "tile", []))
    if deep:
        return "greyscale of 16 bits" if image.mode.startswith("I") else "of 16 bits per channel"
    if image.mode == "RGB":
        return "RGB with a transparent colour" if "transparency" in image.info else None
    return KINDS.get(image.mode, f"of the mode {image.mode}")


class _Decoded(NamedTuple):
    pixels: np.ndarray | None  # (H, W, 3) uint8
    turn: int  # the EXIF orientation
    grey: bool  # greyscale of 8 bits: a fault or not, as the others of the set are
    faults: list[str]


def _decode(path: Path, name: str) -> _Decoded:
    """A file's pixels, and what is wrong with it."""
    try:
        pixels = read_rgb(path)
    except UserError as error:
        return _Decoded(None, UPRIGHT, False, [f"{name} cannot be read: {_reason(path, error.__cause__)}"])
    try:
        with open_image(path) as image:
            kind = unusual_kind(image)
            # Asking where the header has none would decode a PNG file once more, up to its end.
            turn = image.getexif().get(ORIENTATION, UPRIGHT) if "exif" in image.info else UPRIGHT
    except Exception as error:  # its pixels are fine: what is damaged are further pictures, or EXIF data
        return _Decoded(None, UPRIGHT, False, [f"{name} is damaged behind its pixels: {_reason(path, error)}"])
    grey = kind == KINDS["L"]
    return _Decoded(pixels, turn, grey, [] if kind is None or grey else [f"{name} is {kind}, not 8-bit RGB"])


def _reason(path: Path, cause: BaseException | None) -> str:
    if isinstance(cause, UnidentifiedImageError):
        return "its content is no picture of a known kind" if path.stat().st_size else "the file is empty"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror  # without the path, which is named already
    return str(cause) or type(cause).__name__


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=str(pixels.shape).encode()).digest()


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _short(path: Path, root: Path) -> str:
    """A file's name below the root; bytes that are no UTF-8, as old archives leave them, are escaped."""
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return os.fsencode(name).decode(errors="backslashreplace")
