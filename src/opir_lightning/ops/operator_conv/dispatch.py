"""The public operator: checks, choice of a backend, autocast."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from opir_lightning.ops.operator_conv import autograd
from opir_lightning.ops.operator_conv.padding import PADDINGS, Padding
from opir_lightning.ops.operator_conv.reference import reference

Backend = Literal["auto", "reference", "shifted", "triton"]

_BACKENDS: tuple[str, ...] = get_args(Backend)
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None  # looks for it, does not import it
_log = logging.getLogger(__name__)


def operator_conv(
    image: Tensor,
    taps: Tensor,
    *,
    dilations: Sequence[int] = (1,),
    padding: Padding = "reflect",
    backend: Backend = "auto",
    groups: int | None = None,
) -> Tensor:
    r"""Apply one K x K linear operator per pixel, at several dilations of the same taps (correlation, stride 1).

    .. math:: y_{bdchw} = \sum_{u,v=0}^{K-1} t_{b,\,g(c)K^2+uK+v,\,hw}\; x_{b,\,c,\,h+(u-r)d,\,w+(v-r)d},
              \qquad r = (K-1)/2

    with g(c) = 0 where the colours share the taps (G = 1) and g(c) = c where each has its own (G = C).

    Args:
        image: ``(B, C, H, W)`` float, any size from 1 x 1 up, any memory format, values used as they are.
        taps: ``(B, G*K*K, H, W)`` float, K odd, G = 1 or C, on the image's device; not normalised. Their dtype is
            independent of the image's. Under autocast they, and only they, are cast to its dtype.
        dilations: distances between neighbouring taps, in pixels, each at least 1; the result has one layer for each.
        padding: what lies outside the image. ``"reflect"`` mirrors without repeating the edge, as often as it takes,
            as ``numpy.pad`` does; ``"replicate"`` repeats the edge; ``"zeros"``.
        backend: ``"auto"`` takes Triton on CUDA where it can, else ``"shifted"``. A named backend runs or raises.
            ``"reference"`` is plain torch: slow, any order of derivatives, traceable into standard operations.
        groups: G, where the channels leave it open: C = 9 and 81 taps are one 9 x 9 operator or nine 3 x 3 ones.
            Needed for no number of channels but the odd squares above 1 (9, 25, ...).

    Returns:
        ``(B, D, C, H, W)`` contiguous, dtype of ``image``. Sums are in float32 or wider. Deterministic, gradients too;
        only ``"reference"`` can be differentiated twice. The image's gradient is computed only where it is required.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit each other; the message names them.
        RuntimeError: the named backend can't run here; the message says why.

    Source: kernels predicted per pixel, Mildenhall et al., CVPR 2018; as an inverse operator, arXiv 2601.10192.
    """
    dilations = check_options(dilations, padding, backend)
    groups = _check_tensors(image, taps, groups)
    taps = autocast(taps)
    if backend == "reference":
        return reference(image, taps, dilations, padding, groups, _odd_root(taps.shape[1] // groups))
    if backend != "shifted":
        reason = why_not_triton(image, taps)
        if backend == "triton" and reason is not None:
            raise RuntimeError(f"operator_conv: the backend 'triton' can't run here: {reason}. Use backend='auto'.")
        if backend == "auto":
            backend = "triton" if reason is None and image.device.type == "cuda" else "shifted"
            if reason is not None and not torch.compiler.is_compiling():
                _log.debug("operator_conv takes 'shifted': %s", reason)
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        # Nothing to record. The first call of a registered operator loads torch's compiler: 3.7 s of every restoration.
        return autograd.forward(image, taps, dilations, padding, groups, backend)
    return autograd.apply(image, taps, dilations, padding, groups, backend)


def why_not_triton(image: Tensor, taps: Tensor) -> str | None:
    """Why the Triton kernels can't take this input; None if they can. Its interpreter runs them on the CPU."""
    if not _TRITON_INSTALLED:
        return "the package 'triton' is not installed"
    if image.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the image is on '{image.device.type}' and the kernels need a CUDA device"
    if torch.float64 in (image.dtype, taps.dtype):
        return "the kernels sum in float32 and the input is float64"
    if image.shape[2] * image.shape[3] >= 2**31:
        return "offsets within one plane are 32-bit and the image has 2^31 pixels or more"
    return None


def check_options(dilations: Sequence[int], padding: str, backend: str) -> list[int]:
    if padding not in PADDINGS:
        raise ValueError(f"padding is '{padding}', needed is one of {', '.join(PADDINGS)}.")
    if backend not in _BACKENDS:
        raise ValueError(f"backend is '{backend}', needed is one of {', '.join(_BACKENDS)}.")
    if isinstance(dilations, int) or len(dilations) == 0 or any(d < 1 for d in dilations):
        raise ValueError(f"dilations is {dilations!r}, needed are one or more integers of at least 1.")
    return [int(d) for d in dilations]


def _check_tensors(image: Tensor, taps: Tensor, groups: int | None) -> int:
    """Check shapes, dtypes and devices; return the number of tap groups."""
    if image.dim() != 4 or taps.dim() != 4:
        raise ValueError(
            f"operator_conv: image is {tuple(image.shape)} and taps are {tuple(taps.shape)}; needed are "
            "(B, C, H, W) and (B, G*K*K, H, W)."
        )
    B, C, H, W = image.shape
    if C < 1 or H < 1 or W < 1:
        raise ValueError(
            f"operator_conv: image is {tuple(image.shape)}; needed are at least one channel and one pixel."
        )
    if taps.shape[0] != B or taps.shape[2] != H or taps.shape[3] != W:
        raise ValueError(
            f"operator_conv: taps are {tuple(taps.shape)} for an image {tuple(image.shape)}; needed is one set of "
            f"taps per pixel: ({B}, G*K*K, {H}, {W})."
        )
    if not image.is_floating_point() or not taps.is_floating_point():
        raise ValueError(f"operator_conv: image is {image.dtype} and taps are {taps.dtype}; needed are float dtypes.")
    if image.device != taps.device:
        raise ValueError(
            f"operator_conv: image is on '{image.device}' and taps on '{taps.device}'; needed is one device."
        )
    return _tap_groups(taps.shape[1], C, groups)


def _tap_groups(channels: int, C: int, groups: int | None) -> int:
    """G of ``G*K*K`` tap channels for C image channels, K odd."""
    if groups is not None and groups not in (1, C):
        raise ValueError(f"operator_conv: groups is {groups}; needed is 1 or the image's {C} channels.")
    fitting = [g for g in {1, C} if groups in (None, g) and channels % g == 0 and _odd_root(channels // g)]
    if not fitting:
        wanted = f"{groups}*K*K" if groups is not None else f"K*K or {C}*K*K"
        raise ValueError(
            f"operator_conv: taps have {channels} channels for {C} image channels; needed is {wanted}, K odd."
        )
    if len(fitting) > 1:
        raise ValueError(
            f"operator_conv: {channels} tap channels for {C} image channels are one operator shared by all or {C} "
            f"smaller ones; needed is groups=1 or groups={C}."
        )
    return fitting[0]


def _odd_root(number: int) -> int:
    """The odd square root of ``number``; 0 if it has none."""
    K = 1  # not isqrt: torch.compile follows comparisons of symbolic sizes, and K stays a plain integer
    while number > K * K:
        K += 2
    return K if number == K * K else 0


def autocast(taps: Tensor) -> Tensor:
    """Under autocast, float32 taps (or what makes them) in its dtype. The image keeps its own: it stays exact."""
    device = taps.device.type
    # torch.compile follows the question whether a device has autocast only from 2.12 on.
    if taps.dtype != torch.float32 or not (torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)):
        return taps
    return taps.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else taps
