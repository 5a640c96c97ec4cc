"""The uncertainty perception map: the expected absolute error of a result, from what went in and what came out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opir_lightning.models.blocks import cut, pad_to_multiple
from opir_lightning.models.task_parameters import TaskAwareAffine
from opir_lightning.types import Code

# The map is an expected absolute error; below this, a tenth of an 8-bit level, dividing by it only amplifies rounding.
SMALLEST = 4e-4
HIDDEN = 16
_BOXES = (3, 5)  # sides at half the resolution
EVIDENCE = 8


def error_evidence(image: Tensor, result: Tensor) -> Tensor:
    """Logarithms of what an error is often proportional to: what was changed, texture before and after, brightness.

    Args:
        image: ``(B, 3, H, W)``, what the operator was applied to.
        result: ``(B, 3, H, W)``, what came out.

    Returns:
        ``(B, EVIDENCE, H, W)``, of the order of one.
    """
    changed = (result - image).abs().mean(1, keepdim=True)
    before, after = image.mean(1, keepdim=True), result.clamp(0, 1).mean(1, keepdim=True)
    parts = [(_box(changed, side) + 0.002).log() for side in _BOXES]
    for luma in (before, after):
        # Mean absolute deviations: the difference of two mean squares would be mostly rounding where it is smooth.
        parts += [(_box((luma - _box(luma, side)).abs(), side) + 0.002).log() for side in _BOXES]
        parts.append((luma + 0.02).log())
    return torch.cat(parts, dim=1) + 3


def _box(x: Tensor, side: int) -> Tensor:
    """Mean over a square around each pixel, over less of it at the border."""
    return F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)


class UncertaintyHead(nn.Module):
    r"""Map :math:`U = \exp(\sum_k a_k \log q_k + f)` of the expected absolute error.

    The products of powers of the evidence q, with exponents a of the task, carry what is known of errors without any
    learning: they grow with what was changed, with texture, with brightness. f is a small network on the predictor's
    features, both pictures and the evidence, rescaled by the code. Both work at half the resolution. A pointwise
    projection of the features alone, which the operator shapes for its own ends, ranked errors worse than the plain
    difference of result and input does.

    Args:
        features: channels of the predictor's features.
        tasks: number of task classes, or 1 for numbers common to all.
        severity_size: length of the severity vector of the code.
    """

    reach = 2 * 2 * (max(_BOXES) // 2) + 1  # pixels of the result that a pixel of the map sees on each side

    def __init__(self, *, features: int, tasks: int, severity_size: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(features + 6 + EVIDENCE, HIDDEN, 1)
        self.rescale = TaskAwareAffine(tasks=tasks, severity_size=severity_size, channels=HIDDEN, scale=1.0)
        self.project = nn.Conv2d(HIDDEN, 1, 1)
        self.exponents = TaskAwareAffine(tasks=tasks, severity_size=severity_size, channels=EVIDENCE, scale=0.1)
        nn.init.normal_(self.project.weight, std=0.02)
        assert self.project.bias is not None
        nn.init.constant_(self.project.bias, -3.0)  # exp(-3) = 0.05, a usual error of a degraded picture

    def forward(self, features: Tensor, image: Tensor, result: Tensor, code: Code | None) -> Tensor:
        """The map.

        Args:
            features: ``(B, F, H, W)`` of the predictor.
            image, result: ``(B, 3, H, W)``; no gradient flows into them: the picture learns from its own losses.
            code: what the picture suffers from.

        Returns:
            ``(B, 1, H, W)`` float32, positive, in image units.
        """
        height, width = image.shape[-2:]
        with torch.autocast(image.device.type, enabled=False):
            # Pooled one by one: joining them first would copy 30 channels of opir_small's at full resolution.
            pooled = [
                F.avg_pool2d(pad_to_multiple(x.float(), 2), 2) for x in (features, image.detach(), result.detach())
            ]
            evidence = error_evidence(pooled[1], pooled[2])
            raw = self.project(F.gelu(self.rescale(self.expand(torch.cat([*pooled, evidence], dim=1)), code)))
            raw = raw + self.exponents(evidence, code).sum(1, keepdim=True)
            # The logarithm is predicted: errors of all sizes are learned alike. Beyond an error of 1 nothing is said.
            uncertainty = raw.clamp(max=0).exp() + SMALLEST
            uncertainty = F.interpolate(uncertainty, scale_factor=2.0, mode="nearest")
        return cut(uncertainty, height, width)
