"""The pictures of a pair, from the files of an item or made from its clean one."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from opir_lightning.data.alignment import aligned
from opir_lightning.data.images import to_tensor
from opir_lightning.data.sources import Item, PairedFolder, Source
from opir_lightning.data.store import ImageStore
from opir_lightning.errors import UserError


def read_pair(item: Item, store: ImageStore) -> tuple[np.ndarray, np.ndarray | None]:
    """Clean and, where there is a file of it, degraded pixels; ``(H, W, 3)`` uint8.

    Raises:
        UserError: the two are not of the same size.
    """
    clean = store[item.clean]
    if item.degraded is None:
        return clean, None
    degraded = store[item.degraded]
    if clean.shape != degraded.shape:
        raise UserError(
            f"'{item.degraded}' is {degraded.shape[1]}x{degraded.shape[0]} and its clean partner '{item.clean}' "
            f"{clean.shape[1]}x{clean.shape[0]} pixels; a pair must be of one size."
        )
    return clean, degraded


def evaluation_pair(source: Source, item: Item, store: ImageStore, severity: float | None) -> tuple[Tensor, Tensor]:
    """A whole picture and its degraded partner, the same at every call: randomness is seeded by the file name.

    Returns:
        degraded and clean, ``(3, H, W)`` float32 in [0, 1].
    """
    clean_pixels, degraded_pixels = read_pair(item, store)
    clean = to_tensor(clean_pixels)
    if degraded_pixels is not None:
        degraded = to_tensor(degraded_pixels)
        shift = source.align if isinstance(source, PairedFolder) else 0
        return aligned(degraded, clean, most=shift) if shift else (degraded, clean)
    generator = torch.Generator().manual_seed(zlib.crc32(item.clean.name.encode()))
    depth = source.depth(item, store)
    return source.degrade(clean, item, generator, severity, None if depth is None else torch.from_numpy(depth)), clean
