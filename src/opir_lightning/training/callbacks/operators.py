"""The predicted operators at fixed pixels, over the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import Callback, Trainer
from torch import Tensor

from opir_lightning.charts import OperatorRow, kernel_sums, operator_sheet
from opir_lightning.errors import UserError
from opir_lightning.training.callbacks.showing import show
from opir_lightning.training.module import RestorationModule, Validated
from opir_lightning.types import Batch, Code, PixelOperator

COLOURS = ("red", "green", "blue")


class OperatorPictures(Callback):
    """After each validation, what each stage does at fixed pixels: kernels as pictures, their sums, the offsets.

    Args:
        folder: where ``step_<n>.png`` and ``operators.csv``, which has the taps as well, go.
        picture: which picture of each set.
        pixels: places in that picture, as shares of its height and width in [0, 1]. Each costs the restoration of the
            window that the pixel depends on.

    Raises:
        UserError: a place is not two numbers in [0, 1], or the picture a negative number.
    """

    def __init__(self, *, folder: str, picture: int = 0, pixels: Sequence[tuple[float, float]] = ((0.5, 0.5),)) -> None:
        if picture < 0:
            raise UserError(f"callbacks.operators.picture is {picture}; it must be 0 or more.")
        for place in pixels:
            if len(place) != 2 or not all(0 <= share <= 1 for share in place):
                raise UserError(f"callbacks.operators.pixels has {place}; a pixel is [down, across], both in [0, 1].")
        self.folder, self.picture, self.pixels = Path(folder), picture, [tuple(place) for place in pixels]
        self.rows: list[OperatorRow] = []
        self.places: list[tuple[str, str, int, int]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        self.rows, self.places = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        outputs: Validated,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx != self.picture or trainer.sanity_checking or not trainer.is_global_zero:
            return
        # Here and not at the end of the validation: by then the averaged weights may be gone.
        net, name = pl_module.net, pl_module.val_sets[dataloader_idx]
        image, code = outputs.degraded[:1], Code(*(part[:1] for part in outputs.code))
        for share_down, share_across in self.pixels:
            row, column = round(share_down * (image.shape[-2] - 1)), round(share_across * (image.shape[-1] - 1))
            rows, columns = (net.window_around(place) for place in (row, column))
            with torch.no_grad():
                found = net.operators_at(image[..., rows, columns], row - rows.start, column - columns.start, code=code)
            operators = [PixelOperator(kernel.float().cpu(), offset.float().cpu()) for kernel, offset in found]
            seen = _surroundings(image[0], row, column, operators[0].kernel.shape[-1]).cpu()
            self.rows.append(OperatorRow(f"{name}: {batch.name[0]}, row {row}, column {column}", seen, operators))
            self.places.append((name, batch.name[0], row, column))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        if self.rows:
            show(trainer, "operators", self.folder, operator_sheet(self.rows), self._table())
        self.rows, self.places = [], []

    def _table(self) -> dict[str, list[object]]:
        """A row per pixel, stage and colour."""
        names = ("set", "picture", "row", "column", "stage", "colour", "sum", "offset", "taps")
        rows = [
            (*place, stage, colour, round(total, 5), round(float(operator.offset[c]), 5), _taps(operator.kernel[c]))
            for place, row in zip(self.places, self.rows, strict=True)
            for stage, operator in enumerate(row.operators, 1)
            for c, (colour, total) in enumerate(zip(COLOURS, kernel_sums(operator), strict=True))
        ]
        return {name: [values[i] for values in rows] for i, name in enumerate(names)}


def _taps(kernel: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in kernel.flatten().tolist())


def _surroundings(image: Tensor, row: int, column: int, side: int) -> Tensor:
    """The square of this odd side around a pixel of ``(3, H, W)``; at the border, its last pixels again."""
    down, across = (
        (torch.arange(side, device=image.device) + place - side // 2).clamp(0, size - 1)
        for place, size in ((row, image.shape[1]), (column, image.shape[2]))
    )
    return image[:, down][:, :, across]
