"""Rain taken from pairs of a rainy and a clean picture, to be put before other pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from opir_lightning.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
WHITE = 254 / 255
CLIPPED = 0.02  # of the pixels of a pair may be white in all colours: of rain before them nothing is known
ENLARGED = (0.7, 1.5)  # times its own size, in equal ratios
TURNED = 15.0  # degrees, either way
DENSEST = 3  # layers one before the other
BRIGHTEST = 1.3  # times its own brightness: beyond, streaks would be brighter than any in the pairs


class Placed(NamedTuple):
    """Where a layer is cut from.

    Attributes:
        number: of the layer.
        enlarged: times its own size.
        angle: by which it is turned, in degrees.
        mirrored: left for right.
        x, y: of the centre of the cut in the layer, in [0, 1].
    """

    number: int
    enlarged: float
    angle: float
    mirrored: bool
    x: float
    y: float


def read_layers(folders: Sequence[str | Path]) -> list[np.ndarray]:
    """What rain adds in each pair of some folders.

    Args:
        folders: each with rainy pictures in ``input`` and the same without rain, under the same names, in ``target``.

    Returns:
        ``(H, W)`` float32, in [0, 1], black without rain; sorted by folder and name. The largest of the colours counts,
        because what a bright surface has left of a streak is least in its brightest colour. Pairs in which more than
        2 % of the rainy picture is white are left out: the outlines of what is white there would be in the layer.

    Raises:
        UserError: a folder has no pairs, or all of them are left out, a picture cannot be read, or two of a pair
            differ in size.
    """
    layers: list[np.ndarray] = []
    for folder in map(Path, folders):
        before = len(layers)
        rainy = sorted(path for path in (folder / "input").glob("*") if path.suffix.lower() in PICTURES)
        if not rainy:
            raise UserError(f"layers: '{folder}' has no rainy pictures in 'input' ({', '.join(PICTURES)}).")
        for path in rainy:
            partners = sorted(other for other in (folder / "target").glob("*") if other.stem == path.stem)
            if not partners:
                raise UserError(f"layers: '{path}' has no partner of that name in '{folder / 'target'}'.")
            with_rain, without = _read(path), _read(partners[0])
            if with_rain.shape != without.shape:
                raise UserError(f"layers: '{path}' and '{partners[0]}' differ in size.")
            if (with_rain.min(axis=2) >= WHITE).mean() <= CLIPPED:
                layers.append((with_rain - without).max(axis=2).clip(0, 1))
        if len(layers) == before:
            raise UserError(
                f"layers: in every rainy picture of '{folder}' much is white; no rain can be taken from it."
            )
    return layers


def _read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise UserError(f"layers: '{path}' cannot be read as a picture.")
    return picture.astype(np.float32) / 255


def draw_places(rng: np.random.Generator, layers: int) -> list[Placed]:
    """Where as many layers are cut from as may lie one before the other."""
    return [
        Placed(
            number=int(rng.integers(layers)),
            enlarged=float(ENLARGED[0] * (ENLARGED[1] / ENLARGED[0]) ** rng.random()),
            angle=float(rng.uniform(-TURNED, TURNED)),
            mirrored=bool(rng.random() < 0.5),
            x=float(rng.random()),
            y=float(rng.random()),
        )
        for _ in range(DENSEST)
    ]


def lay(layers: Sequence[np.ndarray], places: Sequence[Placed], height: int, width: int, wanted: float) -> np.ndarray:
    """Rain of a wanted strength.

    Args:
        layers: of `read_layers`.
        places: where it is cut from; one after the other is taken until there is enough.
        height, width: of the picture, in pixels.
        wanted: root of the mean square of what is added, in image units; less where all places together have less.

    Returns:
        ``(height, width)`` float32, at least 0.
    """
    rain = np.zeros((height, width), np.float32)
    for placed in places:
        missing = wanted**2 - float(np.square(rain).mean())
        if missing <= 0.05 * wanted**2:
            break
        part = cut(layers[placed.number], placed, height, width)
        own = float(np.square(part).mean())
        if own > 1e-8:
            rain += part * np.float32(min(math.sqrt(missing / own), BRIGHTEST))
    return rain


def cut(layer: np.ndarray, placed: Placed, height: int, width: int) -> np.ndarray:
    """A part of a layer, turned, mirrored and enlarged; it is reflected where it is too small."""
    rows, columns = layer.shape
    cosine, sine = (placed.enlarged**-1 * function(math.radians(placed.angle)) for function in (math.cos, math.sin))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    if placed.mirrored:
        turn = turn @ np.diag([-1.0, 1.0])
    # The centre is where the cut stays inside, as far as it can.
    reach = np.abs(turn) @ [width / 2, height / 2]
    centre = [
        low + place * (high - low) if low < high else length / 2
        for place, length, low, high in (
            (placed.x, columns, reach[0], columns - reach[0]),
            (placed.y, rows, reach[1], rows - reach[1]),
        )
    ]
    offset = np.array(centre) - 0.5 - turn @ [(width - 1) / 2, (height - 1) / 2]
    return cv2.warpAffine(
        layer,
        np.column_stack([turn, offset]),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
