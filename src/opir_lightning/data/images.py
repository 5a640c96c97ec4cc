"""Picture files: listing, decoding, and a store that decodes each file once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from opir_lightning.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def list_images(folder: Path) -> list[Path]:
    """The picture files of a folder, not of its subfolders, sorted by name; hidden files are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def read_rgb(path: Path) -> np.ndarray:
    """Decode a picture as 8-bit RGB.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        UserError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise UserError(f"The picture '{path}' cannot be read ({error}); replace or remove it.") from error


def to_tensor(pixels: np.ndarray) -> Tensor:
    """``(H, W, 3)`` uint8 to ``(3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float().div_(255)


class ImageStore:
    """Decoded pictures by path, uint8, each decoded once.

    Filled before loader workers are forked, its memory is shared by them.
    """

    def __init__(self) -> None:
        self._pixels: dict[Path, np.ndarray] = {}

    def __getitem__(self, path: Path) -> np.ndarray:
        """``(H, W, 3)`` uint8; decodes what is not there yet."""
        if path not in self._pixels:
            self._pixels[path] = read_rgb(path)
        return self._pixels[path]

    def __contains__(self, path: Path) -> bool:
        return path in self._pixels

    def load(self, paths: Iterable[Path], *, what: str) -> list[UserError]:
        """Decode all of these now, with a progress bar where it takes a while.

        Returns:
            One error for each file that could not be decoded.
        """
        wanted: Sequence[Path] = sorted({path for path in paths if path not in self._pixels})
        broken: list[UserError] = []

        def decode(path: Path) -> np.ndarray | UserError:
            try:
                return read_rgb(path)
            except UserError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            decoded = pool.map(decode, wanted)
            for path, result in zip(wanted, tqdm(decoded, what, len(wanted), disable=len(wanted) < 50), strict=True):
                if isinstance(result, UserError):
                    broken.append(result)
                else:
                    self._pixels[path] = result
        return broken
