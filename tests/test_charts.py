"""What the charts of a validation show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opir_lightning.calibration import Bin
from opir_lightning.charts import (
    CHART,
    COLOURS,
    MARGIN,
    OperatorRow,
    calibration_picture,
    confusion_picture,
    kernel_sums,
    operator_sheet,
)
from opir_lightning.types import PixelOperator

ORANGE, PURPLE, DARK = (179, 88, 6), (84, 39, 136), (0, 68, 136)


def places(picture, colour: tuple[int, ...]) -> np.ndarray:
    """Row and column of every pixel of a colour."""
    return np.argwhere((np.asarray(picture) == colour).all(2))


def test_positive_taps_are_orange_negative_ones_purple_colours_and_stages_side_by_side():
    first, second = torch.zeros(2, 3, 3, 3)
    first[0, 1, 1], first[1, 0, 2] = 2.0, -2.0
    second[2, 1, 1] = 0.5
    operators = [PixelOperator(kernel, torch.zeros(3)) for kernel in (first, second)]
    sheet = operator_sheet([OperatorRow("noise: a", torch.full((3, 3, 3), 0.5), operators)])
    orange, purple = places(sheet, ORANGE), places(sheet, PURPLE)
    assert len(orange) == 2 * 53**2  # the largest tap of each stage has the full colour
    assert len(purple) == pytest.approx(53**2, abs=110)  # less the frame
    of_red, of_green, of_blue = orange[:, 1].min(), purple[:, 1].min(), orange[:, 1].max()
    assert of_red < of_green < of_blue
    assert purple[:, 0].max() < orange[:, 0].max()  # the upper row of the kernel
    one_stage = operator_sheet([OperatorRow("noise: a", torch.full((3, 3, 3), 0.5), operators[:1])])
    assert one_stage.width < sheet.width


def test_sums_are_the_gain_of_each_colour():
    kernel = torch.zeros(3, 3, 3)
    kernel[0, 1, 1], kernel[0, 0, 0], kernel[2, 1, 1] = 1.5, -0.25, 8.0
    assert kernel_sums(PixelOperator(kernel, torch.zeros(3))) == [1.25, 0.0, 8.0]


def test_the_dark_cells_of_a_confusion_matrix_are_at_true_row_named_column():
    counts = torch.tensor([[0, 4, 0], [0, 4, 0], [0, 0, 0]])
    dark = places(confusion_picture(counts, ["none", "noise", "rain"]), DARK)
    rows = sorted({int(row) // 64 for row in dark[:, 0] - 54})
    assert rows == [0, 1]
    left, right = dark[:, 1].min(), dark[:, 1].max()
    width = confusion_picture(counts, ["none", "noise", "rain"]).width
    assert 1 / 3 < left / width < right / width < 5 / 6  # the middle one of the columns


def test_a_calibrated_set_lies_on_the_diagonal_and_an_overconfident_one_above_it():
    def curve(predicted: float, true: float) -> list[Bin]:
        return [Bin(0.001, 0.01, 5, predicted, true), Bin(0.01, 0.1, 0, float("nan"), float("nan"))]

    sheet = calibration_picture({"all": curve(0.5, 0.5), "rain": curve(0.01, 0.01), "haze": curve(0.01, 0.1)})
    for number, (right, up) in enumerate([(0.5, 0.5), (0.5, 0.75)]):
        colour = tuple(int(COLOURS[number][i : i + 2], 16) for i in (1, 3, 5))
        found = places(sheet, colour)
        row, column = found[found[:, 1] < MARGIN + CHART].mean(0)  # not the legend
        assert (column - MARGIN) / CHART == pytest.approx(right, abs=0.005)
        assert (MARGIN + CHART - row) / CHART == pytest.approx(up, abs=0.005)
