"""The public operator: checks, choice of a backend, autocast."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from opir_lightning.ops.operator_conv.dispatch import Backend, autocast, check_options, why_not_triton
from opir_lightning.ops.operator_conv.padding import Padding
from opir_lightning.ops.predict_and_apply import autograd
from opir_lightning.ops.predict_and_apply.settings import Settings
from opir_lightning.ops.predict_and_apply.unfused import reference, unfused

_log = logging.getLogger(__name__)


def predict_and_apply(
    image: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    *,
    kernel_size: int,
    groups: int,
    dilations: Sequence[int] = (1,),
    padding: Padding = "reflect",
    backend: Backend = "auto",
    fused: bool = True,
) -> Tensor:
    r"""Predict one linear operator per pixel by a pointwise projection, apply it, mix its dilations, add the offsets.

    .. math:: p_{bn,hw} = \sum_f W_{bnf}\, f_{bf,hw} + b_{bn}, \qquad
              y_{bc,hw} = \sum_d m_{bdc}\, \mathrm{operator\_conv}(x, t)_{bdc,hw} + o_{bc,hw}

    with the taps t = the first G*K*K rows of p, in the order of ``operator_conv``, and the offsets o = the C rows
    behind them, if there are any.

    Fused, the prediction is never stored as a whole: its gradient neither. Weights and bias belong to a sample,
    because scale and shift of a task are folded into them.

    Args:
        image: ``(B, C, H, W)`` float, any size from 1 x 1 up, values used as they are.
        features: ``(B, F, H, W)`` float. Under autocast they, and only they, are cast to its dtype.
        weight: ``(B, N, F)`` float, N = G*K*K or G*K*K + C; used in the dtype of the features.
        bias: ``(B, N)`` float.
        mix: ``(B, D, C)`` float, weights of the dilations.
        kernel_size: K, odd.
        groups: G, 1 (the channels share their taps) or C.
        dilations: D distances between neighbouring taps, in pixels.
        padding: as in ``operator_conv``.
        backend: as in ``operator_conv``; fused, ``"shifted"`` works strip by strip and ``"triton"`` is one kernel.
            ``"auto"`` takes Triton on CUDA where it can, else ``"shifted"``.
        fused: False predicts, stores and applies in separate steps, by the named backend of ``operator_conv``: the
            truth that the fused forms are held to. There the prediction is rounded to the features' dtype.

    Returns:
        ``(B, C, H, W)`` contiguous, dtype of ``image``. Sums are in float32 or wider. Deterministic, gradients too;
        the gradient of the image is computed only where it is required. It stores one sample's taps.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit each other; the message names them.
        RuntimeError: the named backend can't run here; the message says why.

    Source: kernels predicted per pixel, Mildenhall et al., CVPR 2018; as an inverse operator, arXiv 2601.10192.
    """
    settings = Settings(kernel_size, groups, check_options(dilations, padding, backend), padding)
    _check(image, features, weight, bias, mix, settings)
    features = autocast(features)
    with torch.autocast(image.device.type, enabled=False):
        if backend == "reference" and fused:
            return reference(image, features, weight, bias, mix, settings)
        if not fused:
            return unfused(image, features, weight, bias, mix, settings, backend)
        if backend != "shifted":
            reason = why_not_triton(image, features) or _why_not_fused(image, features, weight, settings)
            if backend == "triton" and reason is not None:
                raise RuntimeError(
                    f"predict_and_apply: the backend 'triton' can't run here: {reason}. Use backend='auto'."
                )
            if backend == "auto" and reason is not None and image.device.type == "cuda":
                if not torch.compiler.is_compiling():
                    _log.debug("predict_and_apply goes unfused: %s", reason)
                return unfused(image, features, weight, bias, mix, settings, backend)
            if backend == "auto":
                backend = "triton" if reason is None and image.device.type == "cuda" else "shifted"
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            # Nothing to record, and the first call of a registered operator loads torch's compiler: 3.7 s.
            return autograd.forward(image, features, weight, bias, mix, settings, backend)
        return autograd.apply(image, features, weight, bias, mix, *settings, backend)


def _why_not_fused(image: Tensor, features: Tensor, weight: Tensor, settings: Settings) -> str | None:
    from opir_lightning.ops.predict_and_apply import launch  # imports triton, which not every machine has

    return launch.why_not(image, features, weight, settings)


def _check(image: Tensor, features: Tensor, weight: Tensor, bias: Tensor, mix: Tensor, settings: Settings) -> None:
    if image.dim() != 4 or 0 in image.shape[1:]:
        raise ValueError(
            f"predict_and_apply: image is {tuple(image.shape)}; needed is (B, C, H, W) with at least one pixel."
        )
    B, C, H, W = image.shape
    K, G = settings.kernel_size, settings.groups
    if K < 1 or K % 2 == 0:
        raise ValueError(f"predict_and_apply: kernel_size is {K}; needed is an odd number.")
    if G not in (1, C):
        raise ValueError(f"predict_and_apply: groups is {G}; needed is 1 or the image's {C} channels.")
    N = weight.shape[1] if weight.dim() == 3 else 0
    if N not in (settings.taps, settings.taps + C):
        raise ValueError(
            f"predict_and_apply: weight is {tuple(weight.shape)}; needed is (B, N, F) with N = {settings.taps} rows "
            f"for {G} x {K} x {K} taps, or {settings.taps + C} with an offset for each channel."
        )
    F, D = weight.shape[2], len(settings.dilations)
    wanted = {
        "features": (features, (B, F, H, W)),
        "weight": (weight, (B, N, F)),
        "bias": (bias, (B, N)),
        "mix": (mix, (B, D, C)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != torch.Size(shape):
            raise ValueError(
                f"predict_and_apply: {name} is {tuple(tensor.shape)} for an image {tuple(image.shape)}; needed is "
                f"{tuple(shape)}."
            )
    for name, tensor in {"image": image, **{name: tensor for name, (tensor, _) in wanted.items()}}.items():
        if not tensor.is_floating_point():
            raise ValueError(f"predict_and_apply: {name} is {tensor.dtype}; needed are float dtypes.")
        if tensor.device != image.device:
            raise ValueError(
                f"predict_and_apply: image is on '{image.device}' and {name} on '{tensor.device}'; needed is one "
                "device."
            )
