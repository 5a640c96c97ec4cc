"""Every step works where its inputs are, whatever the default device is, and gives the dtype that it says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from operator_conv_cases import PADDINGS, TOLERANCE, assert_close_to
from torch import Tensor

from opir_lightning.ops.operator_conv import decomposition, operator_conv, shifted
from opir_lightning.ops.operator_conv.padding import fold, widen
from opir_lightning.ops.operator_conv.reference import reference
from opir_lightning.ops.predict_and_apply import decomposition as fused_decomposition
from opir_lightning.ops.predict_and_apply import predict_and_apply, strips
from opir_lightning.ops.predict_and_apply.settings import Settings

DILATIONS = [1, 3]
NAMES = ("image", "features", "weight", "bias", "mix")
FORMS = ("strips", "reference", "unfused", "unfused reference", "decomposed")


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator) for shape in shapes]


def fused_inputs(G: int = 3) -> list[Tensor]:
    return random((2, 3, 5, 7), (2, 4, 5, 7), (2, 9 * G + 3, 4), (2, 9 * G + 3), (2, 2, 3))


def apply(form: str, tensors: list[Tensor], padding: str = "reflect", G: int = 3) -> Tensor:
    """``predict_and_apply`` in one of its forms."""
    options = {"kernel_size": 3, "groups": G, "dilations": DILATIONS, "padding": padding}
    if form == "decomposed":
        return fused_decomposition.decomposed(*tensors, **options)
    backend = "reference" if form.endswith("reference") else "shifted"
    return predict_and_apply(*tensors, **options, backend=backend, fused=not form.startswith("unfused"))


def gradients_of_strips(
    upstream: Tensor, tensors: list[Tensor], needed: Sequence[bool] = (True,) * 5, padding: str = "reflect"
) -> strips.Gradients:
    return strips.backward(upstream, *tensors, Settings(3, 3, DILATIONS, padding), needed)


def operator_steps(padding: str, image: Tensor, taps: Tensor, upstream: Tensor) -> list[Tensor]:
    """What is plain Python below the operator convolution."""
    arguments = (image, taps, DILATIONS, padding)
    return [
        shifted.forward(*arguments, 3),
        *shifted.backward(upstream, *arguments, 3, True, True),
        shifted.backward(upstream, image, taps[:, :9], DILATIONS, padding, 1, False, True)[1],  # the taps are shared
        reference(*arguments, 3, 3),
        decomposition.decomposed(*arguments, 3),
        fold(widen(image, 9, padding, torch.float64), 9, padding, torch.float32),
    ]


def fused_steps(padding: str, *tensors: Tensor) -> list[Tensor]:
    """What is plain Python below predict and apply."""
    with torch.inference_mode():  # otherwise the registration hides the default device from what is behind it
        forms = [apply(form, tensors, padding, G=1) for form in FORMS]
    return [*forms, *strips.backward(tensors[0], *tensors, Settings(3, 1, DILATIONS, padding), [True] * 5)]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("taps_dtype", [torch.float32, torch.bfloat16])
def test_the_operator_makes_nothing_on_the_default_device(taps_dtype, padding):
    image, taps, upstream = random((2, 3, 5, 7), (2, 27, 5, 7), (2, 2, 3, 5, 7))
    inputs = (image, taps.to(taps_dtype), upstream)
    want = operator_steps(padding, *inputs)
    with torch.device("meta"):
        got = operator_steps(padding, *inputs)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_fused_operator_makes_nothing_on_the_default_device(padding):
    inputs = fused_inputs(G=1)
    want = fused_steps(padding, *inputs)
    with torch.device("meta"):
        got = fused_steps(padding, *inputs)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("margin", [0, 2])
def test_widened_and_folded_pictures_have_the_dtype_that_was_asked_for(margin):
    (image,) = random((1, 2, 3, 4))
    wide = widen(image, margin, "zeros", torch.float64)
    folded = fold(wide.clone(), margin, "zeros", torch.bfloat16)
    assert wide.dtype == torch.float64
    assert torch.equal(folded, image.bfloat16())


def test_what_needs_no_folding_is_not_copied():
    (image,) = random((1, 2, 3, 4))
    assert fold(image, 0, "reflect", torch.float32) is image


@pytest.mark.parametrize("narrow", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_each_tensor_may_have_a_dtype_of_its_own(form, narrow):
    tensors = fused_inputs()
    tensors[2] = tensors[2].bfloat16().float()  # weights take the dtype of the features
    place = NAMES.index(narrow)
    tensors[place] = tensors[place].bfloat16()
    want = apply("reference", [tensor.double() for tensor in tensors])
    # In separate steps the prediction is stored in the dtype of the features.
    rounded = "bfloat16" if narrow == "features" and form.startswith("unfused") else None
    assert_close_to(apply(form, tensors), want, tensors[0].dtype, form, products=rounded)


@pytest.mark.parametrize("narrow", NAMES)
def test_each_gradient_has_the_dtype_of_its_tensor(narrow):
    tensors = fused_inputs()
    tensors[2] = tensors[2].bfloat16().float()
    place = NAMES.index(narrow)
    tensors[place] = tensors[place].bfloat16()
    upstream = torch.ones_like(tensors[0])
    double = [tensor.double().requires_grad_() for tensor in tensors]
    want = torch.autograd.grad(apply("reference", double), double, upstream.double())
    for name, tensor, x, y in zip(NAMES, tensors, gradients_of_strips(upstream, tensors), want, strict=True):
        assert_close_to(x, y, tensor.dtype, name)


@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients_of_float64_are_not_rounded_on_the_way(padding):
    tensors = [tensor.double().requires_grad_() for tensor in fused_inputs()]
    upstream = torch.rand(tensors[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = torch.autograd.grad(apply("reference", tensors, padding), tensors, upstream)
    got = gradients_of_strips(upstream, [tensor.detach() for tensor in tensors], padding=padding)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


def test_whichever_gradients_are_needed_they_are_the_same_and_the_others_none():
    tensors = fused_inputs()
    upstream = tensors[0].flip(3)
    every = gradients_of_strips(upstream, tensors)
    for needed in itertools.product([True, False], repeat=5):
        for need, x, y in zip(needed, gradients_of_strips(upstream, tensors, needed), every, strict=True):
            assert torch.equal(x, y) if need else x is None


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
def test_whichever_gradients_of_the_operator_are_needed_they_are_the_same_and_the_others_none(needed):
    image, taps, upstream = random((2, 3, 5, 7), (2, 27, 5, 7), (2, 2, 3, 5, 7))
    every = shifted.backward(upstream, image, taps, DILATIONS, "reflect", 3, True, True)
    got = shifted.backward(upstream, image, taps, DILATIONS, "reflect", 3, *needed)
    for need, x, y in zip(needed, got, every, strict=True):
        assert torch.equal(x, y) if need else x is None


@pytest.mark.parametrize("form", ["strips", "reference", "decomposed"])
def test_a_result_is_rounded_once_at_the_end(form):
    """Two dilations that nearly cancel: what each is rounded by would be most of the difference."""
    image, features, weight, bias, mix = fused_inputs()
    mix[:, 1] = -mix[:, 0]
    tensors = [image.bfloat16(), features, weight, bias, mix]
    want = apply("reference", [tensor.double() for tensor in tensors])
    got = apply(form, tensors)
    assert (got == want.bfloat16()).float().mean() > 0.98


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_knows_every_padding(form, padding):
    tensors = [tensor.double() for tensor in fused_inputs()]
    prediction = torch.einsum("bnf,bfhw->bnhw", tensors[2], tensors[1]) + tensors[3][..., None, None]
    layers = operator_conv(tensors[0], prediction[:, :27], dilations=DILATIONS, padding=padding, backend="reference")
    want = (layers * tensors[4][..., None, None]).sum(1) + prediction[:, 27:]
    torch.testing.assert_close(apply(form, tensors, padding), want, rtol=1e-12, atol=1e-12)


def test_without_a_word_the_picture_is_mirrored_and_not_dilated():
    tensors = fused_inputs()
    tensors[4] = tensors[4][:, :1]
    want = predict_and_apply(*tensors, kernel_size=3, groups=3, dilations=(1,), padding="reflect")
    assert torch.equal(predict_and_apply(*tensors, kernel_size=3, groups=3), want)


@pytest.mark.parametrize("form", ["unfused", "unfused reference"])
def test_in_separate_steps_too_the_groups_are_those_that_were_named(form):
    """9 channels and 81 taps: 3 x 3 taps for each of them, or 9 x 9 for all."""
    image, features, weight, bias, mix = random((1, 9, 5, 6), (1, 2, 5, 6), (1, 81, 2), (1, 81), (1, 1, 9))
    for K, G in ((3, 9), (9, 1)):
        options = {"kernel_size": K, "groups": G}
        want = predict_and_apply(image, features, weight, bias, mix, **options, backend="shifted")
        backend = "reference" if form.endswith("reference") else "shifted"
        got = predict_and_apply(image, features, weight, bias, mix, **options, backend=backend, fused=False)
        assert (got - want).norm() / want.norm() < TOLERANCE["float32"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_are_contiguous_whatever_the_layout_of_the_inputs(layout):
    tensors = [tensor.to(memory_format=layout) if tensor.dim() == 4 else tensor for tensor in fused_inputs()]
    taps = random((2, 27, 5, 7))[0].to(memory_format=layout)
    results = [apply(form, tensors) for form in FORMS]
    results += [operator_conv(tensors[0], taps, backend=backend) for backend in ("reference", "shifted")]
    assert all(result.is_contiguous() for result in results)
