"""The configured degradations applied to given clean pictures, at stated severities or as training draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf

from opir_lightning.data.images import to_tensor
from opir_lightning.degradations import Degradation

HERE = Path(__file__).resolve().parent
CONF = HERE.parents[1] / "conf" / "degradations"
TASKS = ("noise", "rain", "haze", "blur", "low_light")
SEVERITIES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def degradations(config: str) -> Mapping[str, Degradation]:
    """The five degradations of ``conf/degradations/<config>.yaml``."""
    nodes = OmegaConf.load(CONF / f"{config}.yaml")
    return {task: hydra.utils.instantiate(nodes[task], _convert_="all") for task in TASKS}


def degrade(
    degradation: Degradation, clean: Sequence[np.ndarray], severity: float | None, *, first_seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(degraded, clean) uint8; picture i has the seed first_seed + i.

    So between calls only the severity differs.
    """
    pairs = []
    for i, pixels in enumerate(clean):
        generator = torch.Generator().manual_seed(first_seed + i)
        image = degradation(to_tensor(pixels), generator=generator, severity=severity)
        pairs.append((image.mul(255).round().byte().permute(1, 2, 0).numpy(), pixels))
    return pairs


def severity_for(psnr: float, curve: Mapping[float, float]) -> float | None:
    """Where a falling curve of mean PSNR over severity passes a value, by straight lines; None if it never does."""
    severities, values = list(curve), list(curve.values())
    if psnr < min(values) or psnr > max(values):
        return None
    return float(np.interp(-psnr, [-value for value in values], severities))
