"""Pictures to look at: contact sheets of restorations, their uncertainty and their operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from opir_lightning.files import replaced_atomically
from opir_lightning.types import PixelOperator

GAP = 6
LABEL_HEIGHT = 20
# An absolute error of a tenth of the range is a bad one: the map's colours end there, the same in every picture.
UNCERTAINTY_TOP = 0.1
TAP_SIDE = 18  # of a tap in the picture of an operator: nine of them, as most models have, make 162 pixels


def to_pixels(image: Tensor) -> np.ndarray:
    """``(3, H, W)`` in [0, 1] (clamped) or a map ``(1, H, W)`` in image units to ``(H, W, 3)`` uint8 RGB."""
    image = image.detach().float().cpu()
    if image.shape[0] == 1:
        level = (image[0] / UNCERTAINTY_TOP).clamp(0, 1).mul(255).round().byte().numpy()
        return cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()


def scaled_down(values: np.ndarray, longest: int) -> np.ndarray:
    """A picture ``(H, W, 3)`` or map ``(H, W)``, scaled down to at most ``longest`` on the longer side."""
    height, width = values.shape[:2]
    share = longest / max(height, width)
    if share >= 1:
        return values
    size = max(1, round(width * share)), max(1, round(height * share))
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)


def eight_bit(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 or uint16 as uint8."""
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)


def uncertainty_overlay(pixels: np.ndarray, uncertainty: Tensor) -> np.ndarray:
    """The map laid over the picture: half the brightness of the one, half the colour of the other.

    Args:
        pixels: ``(H, W, 3)`` uint8 RGB.
        uncertainty: ``(1, H, W)`` in image units.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    return ((grey.astype(np.uint16) + to_pixels(uncertainty) + 1) // 2).astype(np.uint8)


def operator_picture(operators: Sequence[PixelOperator]) -> Image.Image:
    """What the stages do at one pixel: a row per stage, a column per colour, a square per tap.

    Positive taps are red, negative ones blue, zero is white. The colour goes with the square root of a tap's share of
    the stage's largest one: beside the tap of the pixel itself the others would not be seen otherwise.
    """
    rows = {}
    for number, (kernel, _) in enumerate(operators, 1):
        largest = kernel.abs().max().clamp_min(1e-12)
        share = (kernel.abs() / largest).sqrt() * kernel.sign()
        colours = share.new_ones(3, 3, *kernel.shape[1:])  # of taps: (colour of the picture, red green blue, S, S)
        colours[:, 0] += share.clamp(max=0)
        colours[:, 1] -= share.abs()
        colours[:, 2] -= share.clamp(min=0)
        squares = colours.repeat_interleave(TAP_SIDE, 2).repeat_interleave(TAP_SIDE, 3)
        rows[f"stage {number}, full colour is a tap of {largest:.2f}"] = list(squares)
    return panel(rows, columns=("for red", "for green", "for blue"))


def panel(rows: Mapping[str, Sequence[Tensor]], *, columns: Sequence[str], width: int | None = None) -> Image.Image:
    """A labelled grid.

    Args:
        rows: pictures ``(3, H, W)`` or maps ``(1, H, W)`` by the label of their row, one per column.
        columns: labels of the columns.
        width: scale every picture down to this many pixels; None keeps the size.

    Returns:
        The grid on white.
    """
    cells = {name: [_scaled(Image.fromarray(to_pixels(p)), width) for p in pictures] for name, pictures in rows.items()}
    widths = [max(row[i].width for row in cells.values()) for i in range(len(columns))]
    heights = [max(cell.height for cell in row) for row in cells.values()]
    sheet = Image.new(
        "RGB",
        (sum(widths) + GAP * (len(widths) + 1), sum(heights) + (LABEL_HEIGHT + GAP) * len(heights) + LABEL_HEIGHT),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    for left, label in zip(lefts, columns, strict=True):
        draw.text((left, 2), label, fill="black", font=font)
    top = LABEL_HEIGHT
    for (name, row), height in zip(cells.items(), heights, strict=True):
        draw.text((GAP, top + 1), name, fill="black", font=font)
        for left, cell in zip(lefts, row, strict=True):
            sheet.paste(cell, (left, top + LABEL_HEIGHT))
        top += height + LABEL_HEIGHT + GAP
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all; folders are made."""
    with replaced_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


def _scaled(picture: Image.Image, width: int | None) -> Image.Image:
    if width is None or picture.width <= width:
        return picture
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
