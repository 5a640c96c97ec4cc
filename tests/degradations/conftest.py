"""A real photograph, small; the tests of this folder never need more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import opir_lightning


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """``(3, 150, 230)`` float32 in [0, 1], 8-bit steps, an embedded photograph at half its size."""
    path = Path(opir_lightning.__file__).parent / "data" / "demo" / "heldout" / "friends.jpg"
    with Image.open(path) as image:
        small = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    values = np.array(small)[:150, :230]
    assert values.shape == (150, 230, 3)
    return torch.from_numpy(values).permute(2, 0, 1).float() / 255
