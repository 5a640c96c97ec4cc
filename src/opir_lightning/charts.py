"""Charts of a validation: which task was named, what the uncertainty means, what the operators look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from opir_lightning.calibration import HIGHEST, LOWEST, Bin
from opir_lightning.pictures import panel
from opir_lightning.types import PixelOperator

# Okabe and Ito's colours, told apart by people of every kind of colour vision; black is for all sets together.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
# Ends of ColorBrewer's PuOr, a diverging map that is safe for colour-blind people too; zero is white.
POSITIVE, NEGATIVE = (0.702, 0.345, 0.024), (0.329, 0.153, 0.533)
KERNEL_SIDE = 160  # of a kernel in pixels; its squares are as large as fit
CELL = 64
CHART, MARGIN = 420, 60


class OperatorRow(NamedTuple):
    """The operators at one pixel.

    Attributes:
        name: of the picture.
        around: ``(3, S, S)`` RGB in [0, 1], the pixels around it, itself in the middle.
        operators: one per stage.
    """

    name: str
    around: Tensor
    operators: Sequence[PixelOperator]


def operator_sheet(rows: Sequence[OperatorRow]) -> Image.Image:
    """What the stages do at some pixels: per pixel its surroundings and for each stage kernels, sums and offsets.

    Positive taps are orange, negative ones purple, zero is white. The colour goes with the square root of a tap's share
    of the stage's largest one: beside the tap of the pixel itself the others would not be seen otherwise.
    """
    cells = {
        row.name: [
            _enlarged(row.around),
            *(cell for operator in row.operators for cell in (*_coloured(operator.kernel), _numbers(operator))),
        ]
        for row in rows
    }
    stages = range(1, 1 + len(rows[0].operators))
    kernels = [f"stage {stage}, for {end}" for stage in stages for end in ("red", "green", "blue", "")]
    return panel(cells, columns=("surroundings", *(label.removesuffix(", for ") for label in kernels)))


def kernel_sums(operator: PixelOperator) -> list[float]:
    """The local gain of each colour: the sum of its taps."""
    return [float(value) for value in operator.kernel.sum((1, 2))]


def _coloured(kernel: Tensor) -> list[Tensor]:
    """Kernels ``(3, S, S)`` as three pictures."""
    share = (kernel.abs() / kernel.abs().max().clamp_min(1e-12)).sqrt()
    ends = [kernel.new_tensor(end)[:, None, None] for end in (POSITIVE, NEGATIVE)]
    return [_enlarged(1 - share[c] * (1 - (ends[0] * (kernel[c] >= 0) + ends[1] * (kernel[c] < 0)))) for c in range(3)]


def _numbers(operator: PixelOperator) -> Tensor:
    """What the colours do not tell, written into a cell."""
    font = ImageFont.load_default(size=13)
    cell = Image.new("RGB", (KERNEL_SIDE, KERNEL_SIDE), "white")
    draw = ImageDraw.Draw(cell)
    draw.text((100, 20), "sum", fill="black", font=font, anchor="rm")
    draw.text((155, 20), "offset", fill="black", font=font, anchor="rm")
    for number, (name, total, offset) in enumerate(
        zip(("red", "green", "blue"), kernel_sums(operator), operator.offset.tolist(), strict=True)
    ):
        top = 44 + 24 * number
        draw.text((4, top), name, fill="black", font=font, anchor="lm")
        draw.text((100, top), f"{total:.3f}", fill="black", font=font, anchor="rm")
        draw.text((155, top), f"{offset:+.3f}", fill="black", font=font, anchor="rm")
    draw.text((4, 130), f"full colour {float(operator.kernel.abs().max()):.3f}", fill="black", font=font, anchor="lm")
    return operator.kernel.new_tensor(np.asarray(cell) / 255).permute(2, 0, 1)


def _enlarged(picture: Tensor) -> Tensor:
    """Every pixel a square, with its frame drawn."""
    times = max(KERNEL_SIDE // picture.shape[-1], 1)
    large = picture.repeat_interleave(times, -1).repeat_interleave(times, -2)
    for edge in (large[:, :1], large[:, -1:], large[..., :1], large[..., -1:]):
        edge.fill_(0.6)
    return large


def confusion_picture(counts: Tensor, names: Sequence[str]) -> Image.Image:
    """A confusion matrix; the darker a cell, the larger its share of its row.

    Args:
        counts: ``(T, T)``, pictures by true task (row) and named task (column).
        names: of the tasks.
    """
    font = ImageFont.load_default(size=13)
    left = 30 + max(round(font.getlength(name)) for name in names)
    pitch = max(CELL, left - 20)
    sheet = Image.new("RGB", (left + pitch * len(names) + 10, 60 + CELL * len(names)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((10, 8), "true task, down; named task, across: pictures", fill="black", font=font)
    for column, name in enumerate(names):
        draw.text((left + pitch * (column + 0.5), 42), name, fill="black", font=font, anchor="mm")
    for row, name in enumerate(names):
        top, total = 54 + CELL * row, max(int(counts[row].sum()), 1)
        draw.text((left - 8, top + CELL // 2), name, fill="black", font=font, anchor="rm")
        for column in range(len(names)):
            count = int(counts[row, column])
            share = count / total
            shade = tuple(round(255 + share * (end - 255)) for end in (0, 68, 136))
            x = left + pitch * column
            draw.rectangle((x, top, x + pitch - 2, top + CELL - 2), fill=shade, outline="#bbbbbb")
            ink = "white" if share > 0.5 else "black"
            draw.text((x + pitch // 2, top + CELL // 2), str(count), fill=ink, font=font, anchor="mm")
    return sheet


def calibration_picture(curves: Mapping[str, Sequence[Bin]]) -> Image.Image:
    """True error over predicted error, both logarithmic, a line per set; on the diagonal the map means what it says.

    Args:
        curves: bins by the name of their set; ``"all"``, if it is there, is drawn in black.
    """
    font = ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (CHART + 2 * MARGIN + 120, CHART + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    right, bottom = MARGIN + CHART, MARGIN + CHART
    decades = round(math.log10(HIGHEST / LOWEST))
    for number in range(decades + 1):
        value, at = LOWEST * 10**number, number * CHART / decades
        draw.line((MARGIN + at, MARGIN, MARGIN + at, bottom), fill="#e5e5e5")
        draw.line((MARGIN, bottom - at, right, bottom - at), fill="#e5e5e5")
        draw.text((MARGIN + at, bottom + 12), f"{value:g}", fill="black", font=font, anchor="mm")
        draw.text((MARGIN - 6, bottom - at), f"{value:g}", fill="black", font=font, anchor="rm")
    draw.line((MARGIN, bottom, right, MARGIN), fill="#999999")
    draw.rectangle((MARGIN, MARGIN, right, bottom), outline="black")
    draw.text((MARGIN + CHART // 2, bottom + 34), "predicted absolute error", fill="black", font=font, anchor="mm")
    draw.text((MARGIN, MARGIN - 14), "true absolute error", fill="black", font=font, anchor="lm")
    others = [name for name in curves if name != "all"]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(others)} | {"all": "black"}
    for number, name in enumerate([*others, *(["all"] if "all" in curves else [])]):
        points = [(_place(bin_.predicted), CHART - _place(bin_.true)) for bin_ in curves[name] if bin_.pixels]
        points = [(MARGIN + x, MARGIN + y) for x, y in points]
        draw.line(points, fill=colours[name], width=3 if name == "all" else 2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colours[name])
        top = MARGIN + 8 + 18 * number
        draw.line((right + 12, top, right + 32, top), fill=colours[name], width=3)
        draw.text((right + 38, top), name, fill="black", font=font, anchor="lm")
    return sheet


def _place(error: float) -> float:
    """Pixels from the chart's left or lower end; errors beyond the ends lie on them."""
    value = float(np.clip(error, LOWEST, HIGHEST))
    return CHART * math.log(value / LOWEST) / math.log(HIGHEST / LOWEST)
