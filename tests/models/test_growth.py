"""A larger network starts as the function that a smaller one computes, and can become another."""

from __future__ import annotations

import pytest
import torch

from opir_lightning.errors import UserError
from opir_lightning.models import OPIR
from opir_lightning.models.growth import grow

SMALL = {
    "tasks": ["none", "noise", "rain"],
    "width": 8,
    "encoder_blocks": [1, 1],
    "middle_blocks": 2,
    "decoder_blocks": [1, 1],
    "features": 4,
    "code_crop": 32,
}


def make(**changes) -> OPIR:
    torch.manual_seed(0)
    return OPIR(**{**SMALL, **changes}).eval()


def trained_looking(net: OPIR) -> OPIR:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 16},
        {"width": 24, "features": 6},
        {"code_width": 130},
        {"code_width": 130, "label_aware": True},
        {"encoder_blocks": [2, 1], "decoder_blocks": [1, 3], "middle_blocks": 3},
        {"width": 16, "encoder_blocks": [2, 2, 1], "middle_blocks": 1, "decoder_blocks": [2, 2, 1], "features": 6},
    ],
)
@pytest.mark.parametrize(
    "common",
    [{}, {"task_parameters": "before"}, {"shared_predictor": False, "unshuffle": 4, "label_aware": True}],
)
def test_the_larger_network_computes_what_the_smaller_one_does(changes, common):
    small = trained_looking(make(**common))
    large = make(**{**common, **changes})
    image = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(2))
    grow(small, large)
    with torch.no_grad():
        task = torch.tensor([1, -1])
        want, got = small(image, task=task), large(image, task=task)
    assert (want.refined - image).abs().max() > 0.05
    for name, value in want._asdict().items():
        torch.testing.assert_close(getattr(got, name), value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_copies_of_a_channel_learn_different_things():
    large = make(width=16)
    grow(trained_looking(make()), large)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    large(image).refined.square().sum().backward()
    gradient = large.stages[0].predictor.encoders[0][0].expand1.bias.grad
    first, second = gradient[:8], gradient[8:16]
    assert (first - second).abs().min() > 0
    assert (first - second).abs().mean() > 0.05 * first.abs().mean()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 12}, "width is 8 there and 12 here"),
        ({"width": 4}, "width is 8"),
        ({"encoder_blocks": [1], "decoder_blocks": [1]}, "2 levels"),
        ({"middle_blocks": 1}, "middle_blocks is 2 there"),
        ({"encoder_blocks": [1, 1, 1], "decoder_blocks": [1, 1, 0]}, "middle_blocks is 2 there"),
        ({"features": 2}, "features is 4 there and 2 here"),
        ({"code_width": 95}, "code_width is 96 there and 95 here"),
        ({"width": 16, "kernel_size": 5}, "kernel_size is 3 there and 5 here"),
        ({"width": 16, "tasks": ["none", "noise", "haze"]}, "tasks is"),
    ],
)
def test_what_cannot_grow_is_named_and_nothing_is_changed(changes, named):
    large = make(**changes)
    before = {name: value.clone() for name, value in large.state_dict().items()}
    with pytest.raises(UserError, match=named):
        grow(trained_looking(make()), large)
    for name, value in large.state_dict().items():
        assert torch.equal(value, before[name]), name
