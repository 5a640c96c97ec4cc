"""Parameters and multiply-adds of a network, counted by torch's own counter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def _operator_conv_flops(
    image: Sequence[int],
    taps: Sequence[int],
    dilations: Sequence[int],
    padding: str,
    groups: int,
    *_: object,
    **__: object,
) -> int:
    """Two operations per tap, colour, pixel and dilation."""
    batch, colours, height, width = image
    return 2 * batch * colours * height * width * (taps[1] // groups) * len(dilations)


def _predict_and_apply_flops(
    image: Sequence[int],
    features: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int],
    mix: Sequence[int],
    kernel_size: int,
    groups: int,
    dilations: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    """The projection of every pixel's features, and the operator convolution."""
    batch, colours, height, width = image
    projection = 2 * batch * height * width * weight[1] * weight[2]
    return projection + 2 * batch * colours * height * width * kernel_size**2 * len(dilations)


@torch.no_grad()  # not in inference mode, where the operator is called past torch's counter
def count(net: nn.Module, size: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for one ``size`` x ``size`` picture.

    Convolutions, matrix products and the operator convolution count; what works element by element does not, as in the
    counters of the field.
    """
    parameters = sum(parameter.numel() for parameter in net.parameters())
    training = net.training
    net.eval()
    mapping = {
        torch.ops.opir_lightning.operator_conv: _operator_conv_flops,
        torch.ops.opir_lightning.predict_and_apply: _predict_and_apply_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        net(torch.zeros(1, 3, size, size))
    net.train(training)
    return parameters, counter.get_total_flops() // 2
