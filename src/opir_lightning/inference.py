"""Restore tensors of any size in tiles: what a model does to a picture, and how its pieces become one.

The only global quantity of the model, the code, is estimated once from the whole picture and handed to every tile. A
tiled result therefore equals that of the whole picture wherever the overlap covers the model's receptive field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.tiling import Span, plan_tiles
from opir_lightning.types import Code, Restoration

if TYPE_CHECKING:
    from opir_lightning.models import OPIR

WHOLE_LIMIT = 2**20  # pixels up to which a picture is restored in one piece
AUTO_TILE = 512  # as many pixels of windows as 2.25 times the picture has
SMALLEST_TILE = 64  # smaller ones would be all overlap
# The receptive field is larger, but what lies farther away hardly counts: of opir_small, with 112 a hazy photograph in
# tiles of 512 came out up to 3 of 255 levels different, with 128 in none.
AUTO_OVERLAP = 128

LEVELS = {torch.uint8: 255, torch.uint16: 65535}  # the largest value of integer pixels

Progress = Callable[[int, int], None]  # (tiles done, tiles in all)
TileSize = int | Literal["auto"] | None


class Band(NamedTuple):
    """Finished rows of a picture.

    Attributes:
        rows: which.
        coarse, uncertainty, refined: these rows of the `Restoration`, ``(B, 3 or 1, h, W)`` float32 on the CPU.
    """

    rows: slice
    coarse: Tensor
    uncertainty: Tensor
    refined: Tensor


def restore_bands(
    model: OPIR,
    image: Tensor,
    *,
    tile: int | None,
    overlap: int | None = None,
    code: Code,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Iterator[Band]:
    """Restore tile by tile, and hand out the rows of a picture from top to bottom as they are finished.

    Arguments as in `restore_tiled`, which collects what this yields; in float there are only one tile's tensors and one
    row of tiles at a time.
    """
    if (tile is not None and tile < 1) or (overlap is not None and overlap < 0):
        raise ValueError(f"tile must be positive and overlap not negative, got {tile} and {overlap}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    plan = plan_tiles(*image.shape[-2:], tile=tile, overlap=choose_overlap(model, overlap), stride=model.stride)
    shared: list[Tensor] = []  # rows of the band above that the next one adds to
    done = 0
    for row in plan.rows:
        height = row.kept.stop - row.kept.start
        band = [torch.zeros(len(image), channels, height, image.shape[-1]) for channels in (3, 1, 3)]
        for column in plan.columns:
            parts = _restore_window(model, image, row, column, code, strength, dtype)
            for whole, part in zip(band, parts, strict=True):
                whole[..., column.kept] += part
            done += 1
            if progress:
                progress(done, len(plan))
        for whole, above in zip(band, shared, strict=bool(shared)):
            whole[..., : above.shape[2], :] += above
        finished = height - row.after
        shared = [whole[..., finished:, :].clone() for whole in band] if row.after else []
        coarse, uncertainty, refined = (whole[..., :finished, :] for whole in band)
        yield Band(slice(row.kept.start, row.kept.start + finished), coarse, uncertainty, refined)


@torch.inference_mode()
def _restore_window(
    model: OPIR, image: Tensor, row: Span, column: Span, code: Code, strength: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """What one tile adds to the result: coarse, uncertainty and refined of its kept part, faded out at its seams."""
    window = as_float(image[..., row.window, column.window], code.task.device)
    with torch.autocast(window.device.type, dtype, enabled=dtype != torch.float32):
        result = model(window, code, strength=strength)
    coarse, uncertainty, refined = (
        value[..., row.inner, column.inner].float().cpu()
        for value in (result.coarse, result.uncertainty, result.refined)
    )
    if row.before or row.after or column.before or column.after:
        weights = row.weights[:, None] * column.weights
        coarse, uncertainty, refined = coarse * weights, uncertainty * weights, refined * weights
    return coarse, uncertainty, refined


@torch.inference_mode()
def estimate_code(model: OPIR, image: Tensor, task: int | None) -> Code:
    """What pictures suffer from, from crops of them alone: of a large picture nothing else becomes floats.

    Args:
        model: in evaluation mode; its device is that of the result.
        image: as in `restore_tiled`.
        task: index of the task where it is known.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    label = None if task is None else torch.full((len(image),), task, dtype=torch.int64, device=device)
    estimator, (height, width) = model.code_estimator, image.shape[-2:]
    if min(height, width) < estimator.crop:
        return estimator(as_float(image, device), label)
    windows = estimator.windows(height, width)  # and not the whole picture as floats
    crops = torch.cat([image[..., rows, columns] for rows, columns in windows])
    return estimator.hear(as_float(crops, device), len(windows), label)


def as_float(image: Tensor, device: torch.device) -> Tensor:
    """Pixels of any type that is taken, ``(..., H, W)``, as float32 in [0, 1] on a device."""
    image = image.to(device)  # first, so that 8-bit pictures travel as 8 bits
    return image.float() / LEVELS.get(image.dtype, 1)


def restore_tiled(
    model: OPIR,
    image: Tensor,
    *,
    tile: int | None,
    overlap: int | None = None,
    code: Code | None = None,
    task: int | None = None,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Restoration:
    """Restore a picture in tiles, into buffers on the CPU.

    Args:
        model: in evaluation mode.
        image: ``(B, 3, H, W)`` RGB, float in [0, 1], uint8 or uint16, any size from 1x1, on any device.
        tile: side of the part that one tile delivers, in pixels; None restores the picture in one piece. The model
            sees windows of up to ``tile + 2 * overlap``, which sets the memory.
        overlap: what a window adds on every side. ``model.receptive_field`` gives the result of the whole picture;
            None takes that or 128 pixels, whichever is less.
        code: what the picture suffers from, on the model's device; estimated once from the whole picture if None.
        task: index of the task where it is known; read only if ``code`` is None.
        strength: in [0, 1]: how far the operators go from the identity to what was predicted.
        dtype: the network's, by autocast; the picture itself and the code stay in float32.
        progress: called with (tiles done, tiles in all).

    Returns:
        float32 on the CPU, of the size of ``image``, not clamped.

    Raises:
        ValueError: the image is not ``(B, 3, H, W)`` or is empty, tile is below 1, overlap below 0, or strength
            not in [0, 1].
    """
    if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"expected (B, 3, H, W) with at least one pixel, got {tuple(image.shape)}")
    code = code or estimate_code(model, image, task)
    batch, _, height, width = image.shape
    coarse, uncertainty, refined = (torch.empty(batch, channels, height, width) for channels in (3, 1, 3))
    for band in restore_bands(
        model, image, tile=tile, overlap=overlap, code=code, strength=strength, dtype=dtype, progress=progress
    ):
        coarse[..., band.rows, :] = band.coarse
        uncertainty[..., band.rows, :] = band.uncertainty
        refined[..., band.rows, :] = band.refined
    return Restoration(coarse, uncertainty, refined, code.task_logits.float().cpu().clone())


def choose_device(device: torch.device | str) -> torch.device:
    """``"auto"`` is CUDA where there is one, else the CPU; a named device must be there.

    Raises:
        UserError: it is not, or it is of a kind that nothing here was made for.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"There is no kind of device '{device}'; use auto, cpu, cuda or mps.") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"Nothing here runs on the device '{device}'; use auto, cpu, cuda or mps.")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("The device 'mps' was asked for and torch finds none; use auto or cpu.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError("The device 'cuda' was asked for and torch finds no usable GPU; use auto or cpu.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"There is no device '{device}': torch finds {count}, the last is cuda:{count - 1}.")
    return chosen


def exact_float32() -> None:
    """Let float32 be float32 on a GPU as well: for whole programs, since it holds for everything in the process.

    By default cuDNN rounds what a convolution multiplies to ten bits (TF32). With weights and inputs rounded so, 12 %
    of the 8-bit values of a hazy photograph came out another level, some by two.
    """
    torch.backends.cudnn.allow_tf32 = False


def choose_overlap(model: OPIR, overlap: int | None) -> int:
    """Resolve None: what the model sees around a pixel, and at most 128."""
    return min(model.receptive_field, AUTO_OVERLAP) if overlap is None else overlap


def choose_tile(
    tile: TileSize, height: int, width: int, *, fitting: int | None = None, overlap: int = AUTO_OVERLAP
) -> int | None:
    """Resolve ``"auto"``: one piece up to a megapixel, tiles of 512 beyond, and less where that does not fit.

    Args:
        tile: as given; anything but ``"auto"`` is returned.
        height: of the picture, in pixels.
        width: of the picture.
        fitting: as many pixels of a window fit into the memory; None: all, so that scores depend on no machine's.
        overlap: what a window adds to a tile on every side.
    """
    if tile != "auto":
        return tile
    if height * width <= (WHOLE_LIMIT if fitting is None else min(WHOLE_LIMIT, fitting)):
        return None
    size = AUTO_TILE
    while fitting is not None and size > SMALLEST_TILE and (size + 2 * overlap) ** 2 > fitting:
        size = max(size // 2, SMALLEST_TILE)
    return size
