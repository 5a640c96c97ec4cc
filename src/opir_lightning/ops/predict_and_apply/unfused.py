"""Predict, then apply, in plain steps: the truth that the fused forms are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from opir_lightning.ops.operator_conv.dispatch import Backend, operator_conv
from opir_lightning.ops.predict_and_apply.settings import Settings, project


def unfused(
    image: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    settings: Settings,
    backend: Backend,
) -> Tensor:
    """As ``predict_and_apply``; the taps are stored, in the features' dtype, and ``operator_conv`` applies them."""
    prediction = project(features, weight.to(features.dtype), bias.to(features.dtype))
    layers = operator_conv(
        image,
        prediction[:, : settings.taps],
        dilations=settings.dilations,
        padding=settings.padding,  # type: ignore[arg-type]
        backend=backend,
        groups=settings.groups,
    )
    result = (layers * mix[..., None, None]).sum(1)
    if prediction.shape[1] > settings.taps:
        result = result + prediction[:, settings.taps :]
    return result.to(image.dtype)


def reference(image: Tensor, features: Tensor, weight: Tensor, bias: Tensor, mix: Tensor, settings: Settings) -> Tensor:
    """The definition: everything in float32 or wider, so that nothing is rounded on the way."""
    wide = torch.float32
    for tensor in (image, features, weight, bias, mix):
        wide = torch.promote_types(wide, tensor.dtype)
    image_, features_, weight_ = image.to(wide), features.to(wide), weight.to(wide)
    exact = unfused(image_, features_, weight_, bias.to(wide), mix.to(wide), settings, "reference")
    return exact.to(image.dtype)
