"""The ways to compute it: every backend, the usual baselines, and what each is compared with.

A way works on a mapping of tensors. For given taps (shapes as in ``operator_conv``):

    image (B, C, H, W), taps (B, G*K*K, H, W), kernel (G, 1, K, K), upstream (B, D, C, H, W)

and where they are predicted in the same operation (shapes as in ``predict_and_apply``, N = G*K*K + C):

    image (B, C, H, W), features (B, F, H, W), weight (B, N, F), bias (B, N), mix (B, D, C), upstream (B, C, H, W)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cases
import torch
import torch.nn.functional as F
from cases import Setting
from torch import Tensor

from opir_lightning.ops.operator_conv import operator_conv
from opir_lightning.ops.operator_conv.autograd import apply_backward
from opir_lightning.ops.operator_conv.dispatch import why_not_triton

PADDING = "reflect"

Tensors = Mapping[str, Tensor]
Value = Callable[[Setting, Tensors], Tensor]


class Way(NamedTuple):
    """One way to compute a result.

    Attributes:
        name: as in ``cases``.
        value: the result from setting and tensors.
        oracle: the same in plain torch, for tensors in float64.
        differentiated: names of the tensors that a training step wants gradients of.
        backend: of ``operator_conv``, where single gradients can be asked for; else "".
    """

    name: str
    value: Value
    oracle: Value
    differentiated: tuple[str, ...]
    backend: str = ""


def make_tensors(s: Setting, device: str, seed: int) -> dict[str, Tensor]:
    """Random tensors for all ways of a setting; the result is of the order of 1.

    Made on the device: on the CPU, those of 16 megapixels would take longer than what is measured with them.
    """
    generator = torch.Generator(device).manual_seed(seed)
    image_dtype, taps_dtype = getattr(torch, s.image), getattr(torch, s.taps)
    B, C, D = s.B, s.C, len(s.dilations)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        # In place: two float32 copies of the taps at 16 megapixels are gigabytes.
        return torch.randn(shape, generator=generator, device=device).mul_(scale)

    image = torch.rand(B, C, s.H, s.W, generator=generator, device=device).to(image_dtype)
    if s.F:
        return {
            "image": image,
            "features": normal(B, s.F, s.H, s.W).to(taps_dtype),
            "weight": normal(B, s.projected, s.F, scale=1 / (s.K * s.F**0.5)).to(taps_dtype),
            "bias": normal(B, s.projected, scale=1 / s.K).to(taps_dtype),
            "mix": normal(B, D, C, scale=1 / D**0.5).to(image_dtype),
            "upstream": normal(B, C, s.H, s.W).to(image_dtype),
        }
    return {
        "image": image,
        "taps": normal(B, s.G * s.K**2, s.H, s.W, scale=1 / s.K).to(taps_dtype),
        "kernel": normal(s.G, 1, s.K, s.K, scale=1 / s.K).to(taps_dtype).to(image_dtype),
        "upstream": normal(B, D, C, s.H, s.W).to(image_dtype),
    }


def why_not(name: str, device: str) -> str | None:
    """Why a way can't be taken here; None if it can."""
    if name in (cases.FUSED_SHIFTED, cases.FUSED_TRITON):
        try:
            from opir_lightning.ops.predict_and_apply import predict_and_apply  # noqa: F401
        except ImportError as error:
            return f"this version has no predict_and_apply: {error}"
    if name in (cases.TRITON, cases.FUSED_TRITON, cases.UNFUSED_TRITON):
        return why_not_triton(*torch.empty(2, 1, 1, 1, 1, device=device))
    return None


def get_way(name: str) -> Way:
    """The way of this name."""
    return WAYS[name]


def single_gradient(s: Setting, tensors: Tensors, backend: str, *, of_image: bool) -> Tensor:
    """The gradient of the image or of the taps alone, with what belongs to it (folding the margin back)."""
    image_grad, taps_grad = apply_backward(
        tensors["upstream"],
        tensors["image"],
        tensors["taps"],
        list(s.dilations),
        PADDING,
        s.G,
        backend,
        of_image,
        not of_image,
    )
    return image_grad if of_image else taps_grad


def _ours(backend: str) -> Value:
    def value(s: Setting, t: Tensors) -> Tensor:
        return operator_conv(t["image"], t["taps"], dilations=s.dilations, padding=PADDING, backend=backend, groups=s.G)

    return value


def _columns(s: Setting, image: Tensor, dilation: int) -> Tensor:
    """The unfolded picture, ``(B, C, K*K, H*W)``."""
    margin = s.K // 2 * dilation
    padded = F.pad(image, (margin,) * 4, mode=PADDING)
    return F.unfold(padded, s.K, dilation=dilation).unflatten(1, (s.C, s.K**2))


def _unfold(s: Setting, t: Tensors, combine: Callable[[Setting, Tensor, Tensor], Tensor]) -> Tensor:
    """Sums are in float32, as the operator's, or the result would fail parity.

    So 16-bit pictures are widened first, and 16-bit taps where the gradients of several dilations are added up; those
    of a single dilation are widened in the multiplication itself.
    """
    image = t["image"].float() if t["image"].dtype in (torch.float16, torch.bfloat16) else t["image"]
    taps = t["taps"] if len(s.dilations) == 1 else t["taps"].to(image.dtype)
    taps = taps.flatten(2).unflatten(1, (s.G, s.K**2))
    layers = [combine(s, _columns(s, image, d), taps) for d in s.dilations]
    return torch.stack(layers, 1).unflatten(3, (s.H, s.W)).to(t["image"].dtype)


def _einsum(s: Setting, columns: Tensor, taps: Tensor) -> Tensor:
    taps = taps.to(columns.dtype)  # einsum wants one dtype
    if s.G == 1:
        return torch.einsum("bckp,bkp->bcp", columns, taps[:, 0])
    return torch.einsum("bckp,bckp->bcp", columns, taps)


def _multiply_and_sum(s: Setting, columns: Tensor, taps: Tensor) -> Tensor:
    return (columns * taps).sum(2)


def _conv2d(s: Setting, t: Tensors) -> Tensor:
    kernel = t["kernel"].expand(s.C, 1, s.K, s.K)
    layers = []
    for d in s.dilations:
        padded = F.pad(t["image"], (s.K // 2 * d,) * 4, mode=PADDING)
        layers.append(F.conv2d(padded, kernel, dilation=d, groups=s.C))
    return torch.stack(layers, 1)


def _conv2d_oracle(s: Setting, t: Tensors) -> Tensor:
    """The same kernel as taps of every pixel."""
    taps = t["kernel"].reshape(1, -1, 1, 1).expand(s.B, -1, s.H, s.W)
    return _ours("reference")(s, {**t, "taps": taps})


def _unfused(backend: str) -> Value:
    """Project, convolve, mix the dilations, add the offsets: every step's result goes to memory."""

    def value(s: Setting, t: Tensors) -> Tensor:
        operator = torch.baddbmm(t["bias"][..., None], t["weight"], t["features"].flatten(2))
        operator = operator.unflatten(2, (s.H, s.W))
        taps, offsets = operator[:, : -s.C], operator[:, -s.C :]
        layers = _ours(backend)(s, {"image": t["image"], "taps": taps})
        return (layers * t["mix"][..., None, None]).sum(1) + offsets

    return value


def _fused(backend: str) -> Value:
    def value(s: Setting, t: Tensors) -> Tensor:
        from opir_lightning.ops.predict_and_apply import predict_and_apply

        options: dict[str, Any] = {"kernel_size": s.K, "groups": s.G, "dilations": s.dilations, "padding": PADDING}
        inputs = (t[name] for name in ("image", "features", "weight", "bias", "mix"))
        return predict_and_apply(*inputs, backend=backend, **options)

    return value


_GIVEN = ("image", "taps")
_PREDICTED = ("features", "weight", "bias", "mix")
WAYS = {
    way.name: way
    for way in (
        Way(cases.REFERENCE, _ours("reference"), _ours("reference"), _GIVEN),
        Way(cases.SHIFTED, _ours("shifted"), _ours("reference"), _GIVEN, "shifted"),
        Way(cases.TRITON, _ours("triton"), _ours("reference"), _GIVEN, "triton"),
        Way(cases.EINSUM, lambda s, t: _unfold(s, t, _einsum), _ours("reference"), _GIVEN),
        Way(cases.SUM, lambda s, t: _unfold(s, t, _multiply_and_sum), _ours("reference"), _GIVEN),
        Way(cases.CONV2D, _conv2d, _conv2d_oracle, ("image", "kernel")),
        Way(cases.FUSED_SHIFTED, _fused("shifted"), _unfused("reference"), _PREDICTED),
        Way(cases.FUSED_TRITON, _fused("triton"), _unfused("reference"), _PREDICTED),
        Way(cases.UNFUSED_SHIFTED, _unfused("shifted"), _unfused("reference"), _PREDICTED),
        Way(cases.UNFUSED_TRITON, _unfused("triton"), _unfused("reference"), _PREDICTED),
    )
}
