"""Predict and apply strip by strip, on any device: one strip's taps at a time, in memory that is used again.

On a CPU a strip's taps stay in the cache between their prediction and their use, and no fresh memory is touched for
them, which costs more than the arithmetic. The backward pass predicts each strip's taps anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opir_lightning.ops.operator_conv.padding import fold, widen
from opir_lightning.ops.operator_conv.shifted import Tiles
from opir_lightning.ops.predict_and_apply.settings import Settings

# Values of one strip of the image, per thread.
TILE = 49152


class Gradients(NamedTuple):
    """None for one that is not needed."""

    image: Tensor | None
    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mix: Tensor | None


def forward(image: Tensor, features: Tensor, weight: Tensor, bias: Tensor, mix: Tensor, settings: Settings) -> Tensor:
    """As ``predict_and_apply``, without gradients."""
    work = _Work(image, features, weight, bias, mix, settings)
    wide = widen(image, work.tiles.margin, settings.padding, work.dtype)
    result = torch.empty(image.shape, dtype=work.dtype, device=image.device)
    for tile in work.tiles:
        samples, rows = tile
        prediction = work.predict(tile)
        total = result[samples, :, rows]
        if prediction.shape[1] > settings.taps:
            total.copy_(prediction[:, settings.taps :])
        else:
            total.zero_()
        # The dilations are mixed in what the taps read: then all of them add to one sum.
        mixed = [work.mixed(wide, tile, d) for d in range(len(settings.dilations))]
        taps = prediction[:, : settings.taps].unflatten(1, (settings.groups, -1))
        for t, tap in enumerate(taps.unbind(2)):
            for d, source in enumerate(mixed):
                total.addcmul_(work.tiles.local_view(source, tile, t, d), tap)
    return result.to(image.dtype)


def backward(
    grad: Tensor,
    image: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    settings: Settings,
    needed: Sequence[bool],
) -> Gradients:
    """Gradients of image, features, weight, bias and mix, in their dtypes. Deterministic."""
    work = _Work(image, features, weight, bias, mix, settings)
    need_image, need_features, need_weight, need_bias, need_mix = needed
    grad = grad.to(work.dtype).contiguous()
    wide = widen(image, work.tiles.margin, settings.padding, work.dtype)
    wide_grad = torch.zeros_like(wide) if need_image else None
    # Contiguous whatever the inputs are, as is promised where a step is compiled.
    features_grad = work.features.new_empty(features.shape) if need_features else None
    weight_grad, bias_grad, mix_grad = (x.new_zeros(x.shape) for x in (work.weight, work.bias, work.mix))
    row_grads = torch.empty_like(work.buffer)
    for tile in work.tiles:
        samples, rows = tile
        upstream = grad[samples, :, rows]
        if need_image or need_mix:
            taps = work.predict(tile)[:, : settings.taps].unflatten(1, (settings.groups, -1)).unbind(2)
            for d in range(len(settings.dilations)):
                if need_mix:
                    layer = torch.zeros_like(upstream)
                    for t, tap in enumerate(taps):
                        layer.addcmul_(work.tiles.view(wide, tile, t, d), tap)
                    mix_grad[samples, d] += (layer * upstream).sum((2, 3))
                if wide_grad is not None:
                    scaled = upstream * work.mix[samples, d, :, None, None]
                    for t, tap in enumerate(taps):
                        work.tiles.view(wide_grad, tile, t, d).addcmul_(scaled, tap)
        if need_features or need_weight or need_bias:
            target = work.part(row_grads, tile)
            _prediction_gradient(work, wide, tile, upstream, target)
            flat = target.flatten(2)
            if features_grad is not None:
                back = torch.bmm(work.weight[samples].transpose(1, 2), flat)
                features_grad[samples, :, rows] = back.unflatten(2, target.shape[-2:])
            if need_weight:
                weight_grad[samples].baddbmm_(flat, work.features[samples, :, rows].flatten(2).transpose(1, 2))
            if need_bias:
                bias_grad[samples] += flat.sum(2)
    return Gradients(
        fold(wide_grad, work.tiles.margin, settings.padding, image.dtype) if wide_grad is not None else None,
        features_grad.to(features.dtype) if features_grad is not None else None,
        weight_grad.to(weight.dtype) if need_weight else None,
        bias_grad.to(bias.dtype) if need_bias else None,
        mix_grad.to(mix.dtype) if need_mix else None,
    )


def _prediction_gradient(
    work: _Work, wide: Tensor, tile: tuple[slice, slice], upstream: Tensor, target: Tensor
) -> None:
    """Write the gradient of a strip's prediction into ``target``, ``(b, N, h, W)``."""
    settings = work.settings
    scaled = [upstream * work.mix[tile[0], d, :, None, None] for d in range(len(settings.dilations))]
    targets = target[:, : settings.taps].unflatten(1, (settings.groups, -1)).unbind(2)
    direct = settings.groups == upstream.shape[1]
    total = torch.empty_like(upstream)
    for t, tap_grad in enumerate(targets):
        if direct:
            total = tap_grad
        for d, part in enumerate(scaled):
            view = work.tiles.view(wide, tile, t, d)
            torch.mul(part, view, out=total) if d == 0 else total.addcmul_(part, view)
        if not direct:
            torch.sum(total, 1, keepdim=True, out=tap_grad)
    if target.shape[1] > settings.taps:
        target[:, settings.taps :] = upstream


class _Work:
    """What forward and backward share: inputs in the dtype of the sums, strips, the reused memory of their taps."""

    def __init__(
        self, image: Tensor, features: Tensor, weight: Tensor, bias: Tensor, mix: Tensor, settings: Settings
    ) -> None:
        self.settings = settings
        self.dtype = torch.promote_types(torch.promote_types(image.dtype, features.dtype), torch.float32)
        # The weights are rounded as the features are, and the products of the rounded are summed in full.
        self.weight = weight.to(features.dtype).to(self.dtype)
        self.features, self.bias, self.mix = features.to(self.dtype), bias.to(self.dtype), mix.to(self.dtype)
        self.tiles = Tiles(image, settings.kernel_size, settings.dilations, TILE)
        samples, rows = self.tiles.largest
        self.buffer = self.features.new_empty(samples * weight.shape[1] * rows * image.shape[3])

    def part(self, buffer: Tensor, tile: tuple[slice, slice]) -> Tensor:
        """``(b, N, h, W)`` at the beginning of a buffer."""
        samples, rows = tile[0].stop - tile[0].start, tile[1].stop - tile[1].start
        shape = (samples, self.weight.shape[1], rows, self.tiles.W)
        return buffer[: samples * shape[1] * rows * shape[3]].view(shape)

    def predict(self, tile: tuple[slice, slice]) -> Tensor:
        """The prediction of a strip, in the buffer: valid until the next call."""
        samples, rows = tile
        target = self.part(self.buffer, tile)
        features = self.features[samples, :, rows].flatten(2)
        torch.baddbmm(self.bias[samples, :, None], self.weight[samples], features, out=target.flatten(2))
        return target

    def mixed(self, wide: Tensor, tile: tuple[slice, slice], d: int) -> Tensor:
        """The part of the widened image that a strip reads, times the mixing weights of dilation ``d``."""
        return self.tiles.neighbourhood(wide, tile) * self.mix[tile[0], d, :, None, None]
