"""What a stage does at one pixel: it must be what the restoration did there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from opir_lightning.errors import UserError
from opir_lightning.models import OPIR
from opir_lightning.restorer import Restorer


def make(**settings) -> OPIR:
    torch.manual_seed(0)
    net = OPIR(
        **{
            "tasks": ["none", "noise"],
            "width": 4,
            "encoder_blocks": [1],
            "middle_blocks": 1,
            "decoder_blocks": [1],
            "features": 4,
            "code_crop": 16,
            "dilations": [1, 3],
            **settings,
        }
    ).eval()
    with torch.no_grad():  # away from the identity operator, at which everything starts
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return net


def applied(operator, image: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """The operator on the surroundings of a pixel of ``(1, 3, H, W)``; what lies beyond the border is reflected."""
    reach = operator.kernel.shape[1] // 2
    around = F.pad(image, [reach] * 4, mode="reflect")[0, :, row : row + 2 * reach + 1, column : column + 2 * reach + 1]
    return (operator.kernel * around).sum((1, 2)) + operator.offset


@pytest.mark.parametrize(
    "settings",
    [{}, {"per_colour": False, "offset": False}, {"stages": 1}, {"kernel_size": 5, "dilations": [2]}],
    ids=["usual", "shared kernel, no offset", "one stage", "5x5"],
)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_kernel_and_offset_give_the_restored_pixel(settings, strength):
    net = make(**settings)
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        code = net.estimate_code(image)
        restored = net(image, code, strength=strength)
        for row, column in ((11, 17), (0, 39)):
            operators = net.operators_at(image, row, column, code=code, strength=strength)
            starts_and_results = [(image, restored.coarse), (restored.coarse, restored.refined)]
            assert len(operators) == len(net.task_parameters)
            for operator, (start, result) in zip(operators, starts_and_results, strict=False):
                got = applied(operator, start, row, column)
                torch.testing.assert_close(got, result[0, :, row, column], rtol=0, atol=1e-5)
                assert (got - start[0, :, row, column]).abs().max() > 1e-3  # it does something


def test_a_pixel_of_a_large_picture_needs_only_its_surroundings():
    net = make()
    restorer = Restorer(net, device="cpu")
    side = 3 * net.receptive_field
    pixels = np.random.default_rng(2).integers(0, 256, (side, side + 5, 3), dtype=np.uint8)
    seen = []
    predict = net.predict_operator

    def watched(image, *rest, **more):
        seen.append(image.shape[-2:])
        return predict(image, *rest, **more)

    net.predict_operator = watched
    for row, column in ((side // 2 + 1, side // 2 + 2), (0, 3), (side - 1, side + 4)):
        got = restorer.operators_at(pixels, row, column, task="noise", strength=0.7)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            code = net.estimate_code(image, torch.tensor([1]))
            want = net.operators_at(image, row, column, code=code, strength=0.7)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one.kernel, other.kernel, rtol=0, atol=1e-5)
            torch.testing.assert_close(one.offset, other.offset, rtol=0, atol=1e-5)
    assert min(seen)[0] < side  # the first call saw a window


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (20, 0), (0, 30)])
def test_a_pixel_outside_is_refused(place):
    with pytest.raises(UserError, match="20 rows and 30 columns"):
        Restorer(make(), device="cpu").operators_at(np.zeros((20, 30, 3), np.uint8), *place)


def test_the_estimate_names_every_task_and_adds_up_to_one():
    net = make()
    shares = Restorer(net, device="cpu").estimate(np.full((20, 30, 3), 90, np.uint8))
    image = torch.full((1, 3, 20, 30), 90 / 255)
    want = net.estimate_code(image).task_logits[0].detach().softmax(0)
    assert set(shares) == {"none", "noise"}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert [shares["none"], shares["noise"]] == pytest.approx(want.tolist(), abs=1e-6)
