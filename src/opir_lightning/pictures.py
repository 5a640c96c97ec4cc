"""Pictures to look at: contact sheets of restorations with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 6
LABEL_HEIGHT = 20
# An absolute error of a tenth of the range is a bad one: the map's colours end there, the same in every picture.
UNCERTAINTY_TOP = 0.1


def to_pixels(image: Tensor) -> np.ndarray:
    """``(3, H, W)`` in [0, 1] (clamped) or a map ``(1, H, W)`` in image units to ``(H, W, 3)`` uint8 RGB."""
    image = image.detach().float().cpu()
    if image.shape[0] == 1:
        level = (image[0] / UNCERTAINTY_TOP).clamp(0, 1).mul(255).round().byte().numpy()
        return cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()


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
    """Write a picture; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _scaled(picture: Image.Image, width: int | None) -> Image.Image:
    if width is None or picture.width <= width:
        return picture
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
