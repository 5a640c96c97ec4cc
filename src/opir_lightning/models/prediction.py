"""What is predicted for a stage, and by what."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from opir_lightning.models.predictor import OperatorPredictor
from opir_lightning.models.task_parameters import OperatorProjection, TaskAwareAffine
from opir_lightning.types import Code


class Operator(NamedTuple):
    """What is predicted for one stage.

    Attributes:
        features: ``(B, F, H, W)``, from which the taps and offsets of a pixel are projected where they are applied.
        projection: of the features to taps and offsets, and the weights that mix the dilations.
    """

    features: Tensor
    projection: OperatorProjection

    def predict(self) -> Tensor:
        """Taps and offsets of every pixel, ``(B, G·K² [+ 3], H, W)``: for a look at them; it is large."""
        weight, bias, _ = self.projection
        return torch.einsum("bnf,bfhw->bnhw", weight, self.features) + bias[..., None, None]


class Prediction(nn.Module):
    """Predictor, and the pointwise projection of its features to taps and offsets."""

    def __init__(
        self,
        *,
        predictor: OperatorPredictor,
        features: int,
        channels: int,
        before: TaskAwareAffine | None,
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.before = before
        self.projection = nn.Linear(features, channels)  # applied by the task parameters, which it is folded with
        # The identity operator at the start: what untrained features add to it is noise, and the first thing that would
        # be learned is to scale them down to nothing, from where the predictor gets no gradient.
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, image: Tensor, guidance: Tensor, code: Code | None) -> Tensor:
        features: Tensor = self.predictor(image, guidance)
        return features if self.before is None else self.before(features, code)
