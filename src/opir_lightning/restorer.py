"""A trained model for the pictures that people have: files, arrays, PIL pictures; devices, memory, names of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.finishing import Finishing
from opir_lightning.highlights import Highlights
from opir_lightning.inference import (
    LEVELS,
    Progress,
    TileSize,
    as_float,
    choose_device,
    choose_overlap,
    choose_tile,
    estimate_code,
    restore_bands,
    restore_tiled,
)
from opir_lightning.memory import Allocate, free_memory
from opir_lightning.picture_files import read_picture, to_rgb
from opir_lightning.smooth_haze import HazeMode
from opir_lightning.types import Code, PixelOperator, Restoration

MEMORY_SHARE = 0.5  # of the free memory that a window may take
ROWS_AT_ONCE = 64  # of a finished band, while it becomes integers
CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Restorer:
    """A trained model, ready for pictures. Safe to call from several threads.

    Args:
        model: any `opir_lightning.models.OPIR`; it is moved to the device and set to evaluation mode.
        device: ``"auto"`` (CUDA if there is one), or a torch device.
        dtype: ``"float32"``, or the network by autocast in ``"bfloat16"`` or ``"float16"``: faster where the device
            computes in it, and some hundredths of a decibel away. On a GPU float32 means what
            `opir_lightning.inference.exact_float32` says unless the program calls that.

    Raises:
        UserError: there is no such device or dtype.

    Example:
        ``Restorer.from_pretrained("model.safetensors").restore_image(Image.open("rainy.jpg")).save("dry.jpg")``
    """

    def __init__(self, model: Any, *, device: torch.device | str = "auto", dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise UserError(f"There is no dtype '{dtype}'; use one of {', '.join(DTYPES)}.")
        self.device, self.dtype = choose_device(device), DTYPES[dtype]
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.tasks: tuple[str, ...] = tuple(model.tasks)
        self.metadata: Mapping[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls, weights: Path | str, device: torch.device | str = "auto", dtype: str = "float32"
    ) -> Restorer:
        """Load packaged weights by name, a ``.safetensors`` or ``.ckpt`` file, a run folder, or a model on the hub.

        Args:
            weights: as in `opir_lightning.checkpoints.find_weights`; ``owner/name`` or ``owner/name@revision`` is a
                model on the Hugging Face Hub unless a file or folder has this name.
            device: as for the class.
            dtype: as for the class.

        Raises:
            UserError: the file is missing, broken or from something else, it cannot be fetched, or there is no such
                device.
        """
        from opir_lightning.checkpoints import load_model

        model, header = load_model(weights, choose_device(device))
        restorer = cls(model, device=device, dtype=dtype)
        restorer.metadata = header.metadata
        return restorer

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license_name: str = "other",
        private: bool | None = None,
        commit_message: str = "Weights and model card",
        card: str | None = None,
    ) -> str:
        """Send the weights, with settings and metadata, and a model card to the Hugging Face Hub.

        Needs ``pip install 'opir-lightning[hub]'`` and a login, by ``hf auth login`` or ``HF_TOKEN``. What is there
        under the names ``model.safetensors`` and ``README.md`` is replaced; the hub keeps the history.

        Args:
            repo_id: ``"owner/name"``; created if it is not there.
            license_name: the hub's name of the licence of the weights, such as ``"apache-2.0"``; what the training
                data permit is for you to know, hence ``"other"``.
            private: who may see it; None leaves that to the owner's defaults and to what is there.
            commit_message: the first line of the commit.
            card: Markdown with front matter; None writes one from ``metadata``, see `opir_lightning.model_card`.

        Returns:
            The address of the model's page. ``Restorer.from_pretrained(repo_id)`` loads it back.

        Raises:
            UserError: the extra is not installed, the id is none, it may not be written, it is there and not as
                private as asked for, or the hub cannot be reached.
        """
        from opir_lightning import hub
        from opir_lightning.checkpoints import pack_weights
        from opir_lightning.model_card import write_card

        if card is None:
            parameters = sum(parameter.numel() for parameter in self.model.parameters())
            card = write_card(
                repo_id, tasks=self.tasks, parameters=parameters, metadata=self.metadata, license_name=license_name
            )
        files = {hub.WEIGHTS_FILE: pack_weights(self.model, self.metadata), hub.CARD_FILE: card.encode()}
        return hub.upload(repo_id, files, private=private, message=commit_message)

    def __call__(
        self,
        image: Tensor | np.ndarray | Image.Image | Path | str,
        *,
        task: str | None = None,
        tile: TileSize = "auto",
        overlap: int | None = None,
        strength: float = 1.0,
        progress: Progress | None = None,
    ) -> Restoration:
        """Restore one picture, or a batch of one size.

        Args:
            image: ``(3, H, W)`` or ``(B, 3, H, W)`` tensor, float in [0, 1], uint8 or uint16; ``(H, W, 3)`` or
                ``(H, W)`` array, alike; a PIL picture; or the path of one.
            task: name of the degradation where it is known; None or ``"auto"`` estimates it.
            tile: side of a tile in pixels, None for one piece; ``"auto"``: one piece up to a megapixel, 512 beyond,
                and less where the free memory is too small for it.
            overlap: as in `restore_tiled`.
            strength: from 0, the picture as it is, to 1, the restoration.
            progress: called with (tiles done, tiles in all).

        Returns:
            Always with the batch dimension, float32 on the CPU, not clamped.

        Raises:
            UserError: the task is unknown, the picture unreadable, or its values or the strength are not in [0, 1].
        """
        _check_strength(strength)
        batch = _as_batch(image)
        return restore_tiled(
            self.model,
            batch,
            tile=self.choose_tile(tile, *batch.shape[-2:], batch=len(batch), overlap=overlap),
            overlap=overlap,
            code=self._code(batch, task),
            strength=strength,
            dtype=self.dtype,
            progress=progress,
        )

    def restore_image(
        self,
        picture: Image.Image,
        *,
        task: str | None = None,
        tile: TileSize = "auto",
        strength: float = 1.0,
        highlights: Highlights = "keep",
        haze: HazeMode = "smooth",
    ) -> Image.Image:
        """Restore a PIL picture of any mode to an 8-bit RGB one, turned upright; arguments as in `restore_pixels`."""
        pixels, _ = self.restore_pixels(
            to_rgb(picture),
            task=task,
            tile=tile,
            strength=strength,
            highlights=highlights,
            haze=haze,
            with_uncertainty=False,
        )
        return Image.fromarray(pixels)

    def restore_pixels(
        self,
        pixels: np.ndarray,
        *,
        task: str | None = None,
        tile: TileSize = "auto",
        overlap: int | None = None,
        strength: float = 1.0,
        highlights: Highlights = "keep",
        haze: HazeMode = "smooth",
        with_uncertainty: bool = True,
        allocate: Allocate = np.empty,
        progress: Progress | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Restore ``(H, W, 3)`` uint8 or uint16; only one row of tiles at a time is in float.

        Arguments as in `__call__`; without the uncertainty a large picture needs a fifth less memory, and ``allocate``
        says where the results lie. ``highlights="keep"`` compresses what the restoration of a dark picture makes
        brighter than white, see `opir_lightning.highlights`; ``"clip"`` cuts it off. ``haze="smooth"`` lets what is
        done to a hazy picture vary slowly over it, see `opir_lightning.smooth_haze`; ``"raw"`` leaves it as it is.

        Returns:
            ``(H, W, 3)`` of the type of the pixels, and the uncertainty ``(H, W)`` float32, in image units, or
            None.

        Raises:
            UserError: as in `__call__`, or ``highlights`` or ``haze`` is neither.
        """
        if pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"expected uint8 or uint16 pixels, got {pixels.dtype}")
        _check_strength(strength)
        image = _as_batch(pixels)
        code = self._code(image, task)
        finishing = Finishing(
            self.model, image, code, strength=strength, dtype=self.dtype, highlights=highlights, haze=haze
        )
        refined = allocate(pixels.shape, pixels.dtype)
        uncertainty = allocate(pixels.shape[:2], np.float32) if with_uncertainty else None
        for band in restore_bands(
            self.model,
            image,
            tile=self.choose_tile(tile, *pixels.shape[:2], overlap=overlap),
            overlap=overlap,
            code=code,
            strength=strength,
            dtype=self.dtype,
            progress=progress,
        ):
            for rows in _split(band.rows):
                inside = slice(rows.start - band.rows.start, rows.stop - band.rows.start)
                before = as_float(image[0, :, rows], CPU)
                part = finishing.rows(rows, before, band.coarse[0, :, inside], band.refined[0, :, inside])
                _store(part, refined[rows])
            if uncertainty is not None:
                uncertainty[band.rows] = band.uncertainty[0, 0].numpy()
        if finishing.again:
            restored = torch.from_numpy(refined).permute(2, 0, 1)
            for rows in _split(slice(0, pixels.shape[0])):
                before, after = (as_float(part[:, rows], CPU) for part in (image[0], restored))
                _store(finishing.whole(rows, before, after), refined[rows])
                if progress:
                    progress(1, 1)  # all tiles are done, but pages of large pictures have to be released
        return refined, uncertainty

    @torch.inference_mode()
    def estimate(self, image: Tensor | np.ndarray | Image.Image | Path | str) -> dict[str, float]:
        """What a picture seems to suffer from: shares of the tasks, largest first, that add up to 1.

        The argument and the errors are those of `__call__`; of a batch, the first picture counts.
        """
        shares = self._code(_as_batch(image)[:1], None).task_logits[0].float().softmax(0).tolist()
        return dict(sorted(zip(self.tasks, shares, strict=True), key=lambda pair: -pair[1]))

    @torch.inference_mode()
    def operators_at(
        self,
        image: Tensor | np.ndarray | Image.Image | Path | str,
        row: int,
        column: int,
        *,
        task: str | None = None,
        strength: float = 1.0,
    ) -> list[PixelOperator]:
        """The operator that each stage applies at one pixel, as it is when the picture is restored in one piece.

        Only the pixels that it depends on are computed, so that it takes no longer in a large picture.

        Args:
            image, task, strength: as in `__call__`; of a batch, the first picture counts.
            row: of the pixel, from 0 at the top.
            column: of the pixel, from 0 on the left.

        Returns:
            One per stage, float32 on the CPU.

        Raises:
            UserError: as in `__call__`, or there is no such pixel.
        """
        _check_strength(strength)
        batch = _as_batch(image)[:1]
        height, width = batch.shape[-2:]
        if not (0 <= row < height and 0 <= column < width):
            raise UserError(f"The picture has {height} rows and {width} columns, and no pixel at ({row}, {column}).")
        rows, columns = (self.model.window_around(place) for place in (row, column))
        found = self.model.operators_at(
            as_float(batch[..., rows, columns], self.device),
            row - rows.start,
            column - columns.start,
            code=self._code(batch, task),
            strength=strength,
        )
        return [PixelOperator(kernel.float().cpu(), offset.float().cpu()) for kernel, offset in found]

    def choose_tile(
        self, tile: TileSize, height: int, width: int, *, batch: int = 1, overlap: int | None = None
    ) -> int | None:
        """Resolve ``"auto"`` for a picture of this size: tiles whose windows fit into the memory that is free now."""
        fitting = int(MEMORY_SHARE * free_memory(self.device) / (self.model.memory_per_pixel * batch))
        return choose_tile(tile, height, width, fitting=fitting, overlap=choose_overlap(self.model, overlap))

    def free_memory(self) -> None:
        """Give memory that is kept for reuse back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def task_index(self, task: str | None) -> int | None:
        """Index of a task's name, None for None and ``"auto"``; `UserError` for a name the model does not know."""
        if task is None or task == "auto":
            return None
        if task not in self.tasks:
            raise UserError(
                f"This model knows no task '{task}'; it knows {', '.join(self.tasks)}, and 'auto' estimates."
            )
        return self.tasks.index(task)

    def _code(self, image: Tensor, task: str | None) -> Code:
        return estimate_code(self.model, image, self.task_index(task))


def _store(part: Tensor, levels: np.ndarray) -> None:
    """Write ``(3, h, W)`` float32, which is used up, as integers ``(h, W, 3)``."""
    levels[:] = part.clamp_(0, 1).mul_(np.iinfo(levels.dtype).max).round_().permute(1, 2, 0).numpy()


def _split(rows: slice) -> list[slice]:
    """Rows, some at a time: what is computed for them is small beside the band."""
    return [slice(top, min(top + ROWS_AT_ONCE, rows.stop)) for top in range(rows.start, rows.stop, ROWS_AT_ONCE)]


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise UserError(
            f"The strength must be in [0, 1], from the picture as it is to its restoration, not {strength}."
        )


def _as_batch(image: Tensor | np.ndarray | Image.Image | Path | str) -> Tensor:
    """``(B, 3, H, W)``, uint8 or float32, checked."""
    if isinstance(image, Path | str):
        image = read_picture(image).pixels
    if isinstance(image, Image.Image):
        image = to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"An array must be (H, W, 3) or (H, W), and this one is {image.shape}.")
        if image.dtype.kind not in "fiub":
            raise UserError(f"An array must be of numbers, and this one is of {image.dtype}.")
        image = image.astype(image.dtype.newbyteorder("="), copy=False)  # torch knows only the machine's own order
        plain = image.flags.writeable and min(image.strides) >= 0  # what torch can look at without a copy
        image = torch.from_numpy(image if plain else np.array(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        kind = type(image).__name__
        raise UserError(f"A tensor, an array, a PIL picture or a path was expected, and this is of the type '{kind}'.")
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[1] != 3 or batch.numel() == 0:
        raise UserError(
            f"A tensor must be (3, H, W) or (B, 3, H, W) and not empty, and this one is {tuple(image.shape)}."
        )
    if batch.dtype in LEVELS:
        return batch
    if not batch.is_floating_point():
        raise UserError(f"Pixels must be uint8, uint16, or floating-point in [0, 1], and these are {batch.dtype}.")
    low, high = batch.min().item(), batch.max().item()
    if not (low >= -1 and high <= 2):  # noise may leave [0, 1]; so written, a NaN is refused too
        raise UserError(
            f"Pixels must be in [0, 1], and these reach from {low:g} to {high:g}; divide 8-bit values by 255."
        )
    return batch.float()
