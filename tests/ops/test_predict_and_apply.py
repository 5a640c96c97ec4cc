"""Predict and apply: its meaning by numbers, every backend against the float64 definition, registration, checks."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import torch
from operator_conv_cases import TOLERANCE, assert_close_to
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from opir_lightning.ops.operator_conv import operator_conv
from opir_lightning.ops.predict_and_apply import predict_and_apply, strips

D4 = (1, 2, 3, 4)
NAMES = ("image", "features", "weight", "bias", "mix")
OPERATOR = torch.ops.opir_lightning.predict_and_apply.default
BACKWARD = torch.ops.opir_lightning.predict_and_apply_backward.default

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="this process compiles kernels for its GPU; run with -m gpu"
)
DEVICES = [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.gpu)]


class Case(NamedTuple):
    """Batch, channels, tap groups, height, width, operator size, dilations, features and the rest."""

    B: int
    C: int
    G: int
    H: int
    W: int
    K: int
    dilations: tuple[int, ...]
    padding: str
    F: int
    offsets: bool
    features_dtype: torch.dtype = torch.float32
    image_dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        kinds = f"{self.image_dtype}-{self.features_dtype}".replace("torch.", "")
        return f"{self.B}x{self.C}x{self.H}x{self.W}-G{self.G}-K{self.K}-D{len(self.dilations)}-F{self.F}-{kinds}"

    @property
    def options(self) -> dict:
        return {
            "kernel_size": self.K,
            "groups": self.G,
            "dilations": self.dilations,
            "padding": self.padding,
        }


def inputs(case: Case, device: str = "cpu") -> tuple[list[Tensor], Tensor]:
    """The five tensors and the upstream gradient; the weights are such that the features' dtype holds them exactly."""
    gen = torch.Generator().manual_seed(0)
    N = case.G * case.K**2 + (case.C if case.offsets else 0)
    image = torch.rand(case.B, case.C, case.H, case.W, generator=gen).to(case.image_dtype)
    features = torch.randn(case.B, case.F, case.H, case.W, generator=gen).to(case.features_dtype)
    weight = (torch.randn(case.B, N, case.F, generator=gen) * 0.3).to(case.features_dtype).float()
    bias = torch.randn(case.B, N, generator=gen)
    mix = torch.rand(case.B, len(case.dilations), case.C, generator=gen)
    upstream = torch.randn(case.B, case.C, case.H, case.W, generator=gen).to(case.image_dtype)
    return [tensor.to(device) for tensor in (image, features, weight, bias, mix)], upstream.to(device)


def value_and_gradients(case: Case, backend: str, tensors: list[Tensor], upstream: Tensor, **options) -> dict:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = predict_and_apply(*leaves, **case.options, backend=backend, **options)
    gradients = torch.autograd.grad(result, leaves, upstream)
    return {"result": result.detach(), **dict(zip(NAMES, gradients, strict=True))}


def assert_as_defined(case: Case, backend: str, device: str = "cpu") -> None:
    tensors, upstream = inputs(case, device)
    got = value_and_gradients(case, backend, tensors, upstream)
    want = value_and_gradients(case, "reference", [tensor.double() for tensor in tensors], upstream.double())
    dtypes = {"result": case.image_dtype, **{name: t.dtype for name, t in zip(NAMES, tensors, strict=True)}}
    kind = str(case.features_dtype).removeprefix("torch.")
    for name, value in want.items():
        # In the kernels the gradient of the prediction is rounded to the features' dtype for the matrix units.
        products = kind if backend == "triton" and name in ("features", "weight", "bias") else None
        assert_close_to(got[name], value, dtypes[name], name, products=products)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    """``torch.empty`` holds NaN, so that a place that is never written shows; operations must be deterministic."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


SMALL = [
    Case(1, 3, 3, 9, 40, 3, D4, "reflect", 6, True),  # four tiles, three of them partly empty
    Case(2, 3, 1, 9, 5, 5, (1,), "zeros", 8, True, torch.float16),
    Case(2, 3, 3, 5, 7, 3, (1, 2), "replicate", 16, False, torch.float16),
    Case(1, 3, 1, 4, 9, 7, (1,), "reflect", 17, True, torch.float16),  # two chunks of rows, features rounded up to 32
    Case(1, 2, 2, 2, 3, 3, (1, 4), "reflect", 4, True, torch.float16),  # reflected more than once
    Case(1, 1, 1, 1, 1, 1, (1,), "reflect", 1, True),
    Case(1, 3, 3, 4, 6, 3, (1, 3), "zeros", 4, True, torch.float16, torch.float16),
]
LARGE = [
    Case(2, 3, 3, 129, 257, 3, D4, "reflect", 16, True, torch.bfloat16),
    Case(1, 3, 1, 201, 63, 7, (1,), "reflect", 32, True, torch.bfloat16),
    Case(3, 3, 1, 64, 65, 5, (1, 2), "replicate", 24, False, torch.bfloat16),
    Case(1, 3, 3, 63, 65, 3, D4, "zeros", 32, True, torch.float16, torch.float16),
    Case(1, 3, 3, 63, 65, 3, D4, "reflect", 16, True),
]


@pytest.mark.parametrize("tile", [40, 200, strips.TILE])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_strips_match_the_definition(case, tile, monkeypatch):
    """40 values of a strip are single rows, 200 a few rows or samples with a rest, the default the whole batch."""
    monkeypatch.setattr(strips, "TILE", tile)
    assert_as_defined(case, "shifted")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_kernels_match_the_definition(case, device):
    pytest.importorskip("triton", reason="the package 'triton' is not installed")
    assert_as_defined(case, "triton", device)


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_kernels_match_the_definition_on_larger_images(case):
    assert_as_defined(case, "triton", "cuda")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("backend", ["reference", "shifted"])
def test_one_pixel_by_hand(backend, fused):
    """One feature of 2: taps 2 * (0 ... 8) / 10 + 1, offset 2 * 3 + 4; layers weighted 0.5 and 2."""
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    weight = torch.cat([torch.arange(9.0) / 10, torch.tensor([3.0])]).view(1, 10, 1)
    bias = torch.cat([torch.ones(9), torch.tensor([4.0])]).view(1, 10)
    mix = torch.tensor([0.5, 2.0]).view(1, 2, 1)
    result = predict_and_apply(
        image, torch.full((1, 1, 3, 3), 2.0), weight, bias, mix,
        kernel_size=3, groups=1, dilations=(1, 2), padding="zeros", backend=backend, fused=fused,
    )  # fmt: skip
    near = 0.2 * 240 + 45  # 0*1 + 1*2 + ... + 8*9, and the sum of the image
    far = (0.2 * 4 + 1) * 5  # at a distance of two only the centre lies inside
    assert result[0, 0, 1, 1].item() == pytest.approx(0.5 * near + 2 * far + 10)


@pytest.mark.parametrize("backend", ["reference", "shifted"])
def test_gradcheck(backend):
    case = Case(1, 2, 2, 3, 4, 3, (1, 2), "reflect", 2, True)
    tensors = [tensor.double().requires_grad_() for tensor in inputs(case)[0]]
    assert torch.autograd.gradcheck(lambda *t: predict_and_apply(*t, **case.options, backend=backend), tensors)


def test_unfused_is_projection_convolution_mixing_and_offsets():
    case = Case(2, 3, 3, 6, 5, 3, (1, 2), "reflect", 4, True)
    (image, features, weight, bias, mix), _ = inputs(case)
    prediction = torch.einsum("bnf,bfhw->bnhw", weight, features) + bias[..., None, None]
    layers = operator_conv(image, prediction[:, :27], dilations=(1, 2))
    want = (layers * mix[..., None, None]).sum(1) + prediction[:, 27:]
    for fused in (True, False):
        got = predict_and_apply(image, features, weight, bias, mix, **case.options, fused=fused)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_strips_repeat_bit_for_bit_and_leave_their_inputs_alone(monkeypatch):
    monkeypatch.setattr(strips, "TILE", 100)
    case = Case(2, 3, 3, 11, 13, 3, D4, "reflect", 6, True)
    tensors, upstream = inputs(case)
    copies = [tensor.clone() for tensor in tensors]
    first, second = (value_and_gradients(case, "shifted", tensors, upstream) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("needed", NAMES)
def test_a_gradient_that_is_not_needed_is_not_computed(device, needed, monkeypatch):
    pytest.importorskip("triton", reason="the package 'triton' is not installed")
    from opir_lightning.ops.operator_conv import launch as operator_launch
    from opir_lightning.ops.predict_and_apply import kernels, launch

    case = Case(1, 1, 1, 2, 3, 1, (1,), "zeros", 2, True, torch.float16)
    tensors, _ = inputs(case, device)
    tensors[NAMES.index(needed)].requires_grad_()
    launched = []
    for module, name in ((launch, "_launch"), (operator_launch, "launch")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda kernel, *a, f=original: launched.append(kernel) or f(kernel, *a))
    predict_and_apply(*tensors, **case.options, backend="triton").sum().backward()
    assert launched == [
        kernels.forward_kernel,
        {
            "image": operator_launch.kernels.image_gradient_kernel,
            "features": kernels.features_gradient_kernel,
            "weight": kernels.weight_gradient_kernel,
            "bias": kernels.weight_gradient_kernel,
            "mix": kernels.mix_gradient_kernel,
        }[needed],
    ]


@pytest.mark.parametrize("backend", ["shifted", pytest.param("triton", marks=interpreted)])
def test_opcheck(backend):
    case = Case(1, 1, 1, 2, 3, 3, (1,), "reflect", 2, True)
    tensors, upstream = inputs(case)
    settings = (case.K, case.G, list(case.dilations), case.padding, backend)
    torch.library.opcheck(OPERATOR, (*(tensor.clone().requires_grad_() for tensor in tensors), *settings))
    for needed in ([True] * 5, [False, True, True, False, True]):
        torch.library.opcheck(BACKWARD, (upstream, *tensors, *settings, needed))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", ["shifted", "triton"])
def test_the_layout_of_results_and_gradients_is_what_a_compiler_is_promised(backend, dtype, device):
    """Also for features in another order, as a network in channels-last has them."""
    if backend == "triton":
        pytest.importorskip("triton", reason="the package 'triton' is not installed")
    case = Case(2, 3, 3, 6, 7, 3, (1, 2), "reflect", 4, True, features_dtype=dtype)
    tensors, upstream = inputs(case, device)
    tensors[:2] = [tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors[:2]]
    tensors[2] = tensors[2].transpose(1, 2).contiguous().transpose(1, 2)
    settings = (3, 3, [1, 2], "reflect", backend)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in (upstream, *tensors)]
        promised = [OPERATOR(*fake[1:], *settings), *BACKWARD(*fake, *settings, [True] * 5)]
    found = [OPERATOR(*tensors, *settings), *BACKWARD(upstream, *tensors, *settings, [True] * 5)]
    for one, other in zip(found, promised, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_compile_gives_the_same_values_and_gradients_at_two_sizes():
    torch.compiler.reset()
    compiled = torch.compile(predict_and_apply, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((6, 7), (9, 5)):
        case = Case(2, 3, 3, *size, 3, (1, 2), "reflect", 4, True)
        tensors, upstream = inputs(case)
        results = []
        for function in (predict_and_apply, compiled):
            leaves = [tensor.clone().requires_grad_() for tensor in tensors]
            result = function(*leaves, **case.options)
            results.append((result.detach(), *torch.autograd.grad(result, leaves, upstream)))
        assert all(torch.equal(got, want) for want, got in zip(*results, strict=True))


def test_autocast_rounds_the_features_and_the_weights_and_neither_image_nor_taps():
    case = Case(1, 3, 3, 6, 7, 3, (1, 2), "reflect", 4, True)
    (image, features, weight, bias, mix), _ = inputs(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = predict_and_apply(image, features, weight, bias, mix, **case.options)
    rounded = [tensor.bfloat16().double() for tensor in (features, weight)]
    want = predict_and_apply(image.double(), *rounded, bias.double(), mix.double(), **case.options, backend="reference")
    assert_close_to(got, want, torch.float32, "result")
    exact = predict_and_apply(image, features, weight, bias, mix, **case.options)
    assert (got - exact).norm() / exact.norm() > TOLERANCE["float32"] * 100


def test_inference_mode_gives_the_registered_operators_values():
    case = Case(1, 3, 3, 6, 7, 3, (1, 2), "reflect", 4, True)
    tensors, _ = inputs(case)
    registered = predict_and_apply(*tensors, **case.options)
    with torch.inference_mode():
        assert torch.equal(predict_and_apply(*tensors, **case.options), registered)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"image": torch.rand(3, 4, 5)}, {}, r"image is \(3, 4, 5\)"),
        ({"image": torch.rand(2, 0, 4, 5)}, {}, r"image is \(2, 0, 4, 5\); needed is .* with at least one pixel"),
        ({"image": torch.ones(2, 3, 4, 5, dtype=torch.int64)}, {}, "^predict_and_apply: image is torch.int64"),
        ({"features": torch.rand(2, 4, 4, 6)}, {}, r"features is \(2, 4, 4, 6\) .* needed is \(2, 4, 4, 5\)"),
        ({"weight": torch.rand(2, 28, 4)}, {}, r"weight is \(2, 28, 4\); needed is .* N = 27 .* or 30"),
        ({"weight": torch.rand(1, 30, 4)}, {}, r"^predict_and_apply: weight is \(1, 30, 4\) for an image"),
        ({"weight": torch.rand(1, 4)}, {"kernel_size": 1, "groups": 1}, r"weight is \(1, 4\); needed is \(B, N, F\)"),
        ({"bias": torch.rand(1, 30)}, {}, r"bias is \(1, 30\)"),
        ({"mix": torch.rand(2, 3, 3)}, {}, r"mix is \(2, 3, 3\) .* needed is \(2, 2, 3\)"),
        ({"bias": torch.zeros(2, 30, dtype=torch.int64)}, {}, "bias is torch.int64"),
        ({"mix": torch.rand(2, 2, 3, device="meta")}, {}, "mix on 'meta'"),
        ({}, {"kernel_size": 4}, "kernel_size is 4; needed is an odd number"),
        ({}, {"groups": 2}, "groups is 2; needed is 1 or the image's 3"),
        ({}, {"dilations": ()}, r"dilations is \(\)"),
        ({}, {"padding": "wrap"}, "padding is 'wrap'"),
    ],
)
def test_what_does_not_fit_is_named(change, options, message):
    case = Case(2, 3, 3, 4, 5, 3, (1, 2), "reflect", 4, True)
    tensors = {**dict(zip(NAMES, inputs(case)[0], strict=True)), **change}
    with pytest.raises(ValueError, match=message):
        predict_and_apply(**tensors, **{**case.options, **options})


def test_what_the_kernels_do_not_take_is_said():
    pytest.importorskip("triton", reason="the package 'triton' is not installed")
    case = Case(1, 3, 3, 4, 5, 7, D4, "reflect", 4, True)
    with pytest.raises(RuntimeError, match="150 rows at 4 dilations are more than the kernels unroll"):
        predict_and_apply(*inputs(case)[0], **case.options, backend="triton")
