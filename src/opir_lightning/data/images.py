"""Picture files: listing and decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opir_lightning.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
# What a file is decoded as, whatever its name says. Pillow knows many more kinds; for some it starts other programs.
KINDS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")


class PictureFile(NamedTuple):
    """A file and what its pixels mean.

    Attributes:
        path: of the file.
        kind: ``rgb`` is read by `read_rgb`, ``depth`` by `read_depth`.
    """

    path: Path
    kind: Literal["rgb", "depth"] = "rgb"

    def read(self) -> np.ndarray:
        """Decode it; ``(H, W, 3)`` uint8, or ``(H, W)`` of a depth map's type.

        Raises:
            UserError: it cannot be decoded.
        """
        return read_rgb(self.path) if self.kind == "rgb" else read_depth(self.path)


def list_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """The picture files of a folder, not of its subfolders, sorted by name; hidden files are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def open_image(path: Path) -> Image.Image:
    """Read the header of a picture file of one of `KINDS`; Pillow refuses what has more than 179 megapixels.

    Raises:
        Exception: of whatever class the decoder chooses.
    """
    return Image.open(path, formats=KINDS)


def read_rgb(path: Path) -> np.ndarray:
    """Decode a picture as 8-bit RGB; greyscale of 16 bits is scaled, not cut off.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        UserError: the file cannot be decoded.
    """
    try:
        with open_image(path) as image:
            if image.mode.startswith("I"):
                values = np.asarray(image).astype(np.float32)
                values /= 257  # in place: of a picture as large as Pillow opens, each copy has 0.7 GB
                grey = values.round(out=values).clip(0, 255, out=values).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise UserError(f"The picture '{path}' cannot be read ({error}); replace or remove it.") from error


def read_depth(path: Path) -> np.ndarray:
    """Read a depth or disparity map: a greyscale picture of 8 or 16 bits, or a ``.npy`` array of two dimensions.

    Returns:
        ``(H, W)`` uint8, uint16 or float32; the unit is the file's.

    Raises:
        UserError: the file cannot be read, is not of one channel, or has values that are negative or no numbers.
    """
    try:
        if path.suffix.lower() == ".npy":
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # so the header cannot claim more than there is
            values = np.array(mapped) if mapped.ndim == 2 else mapped
        else:
            with open_image(path) as image:
                values = np.array(image)
    except Exception as error:
        raise UserError(f"The depth map '{path}' cannot be read ({error}); replace or remove it.") from error
    if values.ndim != 2:
        raise UserError(f"The depth map '{path}' has the shape {values.shape}; it needs one channel, (height, width).")
    if values.dtype.kind not in "buif":
        raise UserError(f"The depth map '{path}' holds values of the type {values.dtype}; it needs real numbers.")
    if values.dtype not in (np.uint8, np.uint16):
        values = values.astype(np.float32)
    if not (values.size and np.isfinite(values).all() and values.min() >= 0 and values.max() > 0):
        raise UserError(f"The depth map '{path}' has values that are negative or no numbers, or is 0 everywhere.")
    return values


def to_tensor(pixels: np.ndarray) -> Tensor:
    """``(H, W, 3)`` uint8 to ``(3, H, W)`` float32 in [0, 1]."""
    # A copy in any case: a flipped picture of one pixel counts as contiguous, and torch refuses its stride.
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float().div_(255)
