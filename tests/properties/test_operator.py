"""The operator convolution is linear in picture and taps, knows no place, and its gradients are its adjoints."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opir_lightning.ops.operator_conv import operator_conv

BACKENDS = ("reference", "shifted")


class Setting(NamedTuple):
    """Sizes and options of one call; the numbers follow from the seed."""

    batch: int
    channels: int
    groups: int
    height: int
    width: int
    kernel_size: int
    dilations: tuple[int, ...]
    padding: str
    seed: int

    def image(self, number: int = 0) -> Tensor:
        return self._random(number, self.channels)

    def taps(self, number: int = 0) -> Tensor:
        return self._random(100 + number, self.groups * self.kernel_size**2)

    def _random(self, number: int, channels: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + number)
        size = (self.batch, channels, self.height, self.width)
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def apply(self, image: Tensor, taps: Tensor, backend: str, dilations: tuple[int, ...] | None = None) -> Tensor:
        return operator_conv(image, taps, dilations=dilations or self.dilations, padding=self.padding, backend=backend)


@st.composite
def settings_of_calls(draw: st.DrawFn) -> Setting:
    channels = draw(st.sampled_from([1, 2, 3]))
    return Setting(
        batch=draw(st.integers(1, 2)),
        channels=channels,
        groups=draw(st.sampled_from([1, channels])),
        height=draw(st.integers(1, 9)),
        width=draw(st.integers(1, 9)),
        kernel_size=draw(st.sampled_from([1, 3, 5])),
        dilations=tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))),
        padding=draw(st.sampled_from(["reflect", "replicate", "zeros"])),
        seed=draw(st.integers(0, 2**20)),
    )


calls = settings_of_calls()
numbers = st.floats(-4, 4)
backends = pytest.mark.parametrize("backend", BACKENDS)


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@backends
@given(call=calls, a=numbers, b=numbers)
def test_it_is_linear_in_the_picture_and_in_the_taps(backend, call, a, b):
    image, other, taps, more = call.image(), call.image(1), call.taps(), call.taps(1)
    first = call.apply(image, taps, backend)
    assert_same(call.apply(a * image + b * other, taps, backend), a * first + b * call.apply(other, taps, backend))
    assert_same(call.apply(image, a * taps + b * more, backend), a * first + b * call.apply(image, more, backend))


@given(call=calls)
def test_the_fast_form_is_the_definition_in_value_and_gradients(call):
    upstream = torch.randn(call.apply(call.image(), call.taps(), "reference").shape, dtype=torch.float64)
    results = []
    for backend in BACKENDS:
        image, taps = call.image().requires_grad_(), call.taps().requires_grad_()
        result = call.apply(image, taps, backend)
        results.append((result.detach(), *torch.autograd.grad(result, (image, taps), upstream)))
    for got, want in zip(*results, strict=True):
        assert_same(got, want)


@backends
@given(call=calls)
def test_its_gradients_are_its_adjoints(backend, call):
    """What is linear in x has ``<A x, y> = <x, A^T y>``, and the gradient of ``<A x, y>`` is ``A^T y``."""
    image, taps = call.image().requires_grad_(), call.taps().requires_grad_()
    result = call.apply(image, taps, backend)
    other = torch.randn(result.shape, generator=torch.Generator().manual_seed(call.seed), dtype=torch.float64)
    product = (result * other).sum()
    to_image, to_taps = torch.autograd.grad(product, (image, taps))
    assert_same((to_image * image).sum(), product)
    assert_same((to_taps * taps).sum(), product)


@backends
@given(call=calls, top=st.integers(0, 6), left=st.integers(0, 6))
def test_it_knows_no_place(backend, call, top, left):
    """Within black surroundings a picture comes out as alone, wherever it is."""
    call = call._replace(padding="zeros")
    around = (left, 6 - left, top, 6 - top)
    wide = call.apply(F.pad(call.image(), around), F.pad(call.taps(), around), backend)
    inner = wide[..., top : top + call.height, left : left + call.width]
    assert_same(inner, call.apply(call.image(), call.taps(), backend))
    assert_same(wide.abs().sum(), inner.abs().sum())


@backends
@given(call=calls, level=numbers)
def test_a_flat_picture_is_multiplied_by_the_sum_of_the_taps(backend, call, level):
    call = call._replace(padding="replicate" if call.padding == "zeros" else call.padding)
    image, taps = torch.full_like(call.image(), level), call.taps()
    gain = taps.unflatten(1, (call.groups, -1)).sum(2)[:, None]
    assert_same(call.apply(image, taps, backend), (level * gain).expand(-1, len(call.dilations), call.channels, -1, -1))


@backends
@given(call=calls)
def test_dilations_do_not_know_of_each_other(backend, call):
    together = call.apply(call.image(), call.taps(), backend)
    for place, dilation in enumerate(call.dilations):
        assert_same(together[:, place], call.apply(call.image(), call.taps(), backend, (dilation,))[:, 0])
