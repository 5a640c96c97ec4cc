"""The Triton kernels against the float64 reference: under Triton's interpreter on the CPU, for real on a GPU."""

from __future__ import annotations

import os

import pytest
import torch
from operator_conv_cases import PADDINGS, Case, assert_as_reference, inputs, value_and_gradients

from opir_lightning.ops.operator_conv import operator_conv

pytest.importorskip("triton", reason="the package 'triton' is not installed")

D4 = (1, 2, 3, 4)
OPERATOR = torch.ops.opir_lightning.operator_conv.default
BACKWARD = torch.ops.opir_lightning.operator_conv_backward.default

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="this process compiles kernels for its GPU; run with -m gpu"
)
DEVICES = [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.gpu)]

# One program owns 8 rows of 32 columns: 9 x 40 are four, three of them partly empty, 13 x 21 are two and 18 x 67 nine.
# A kernel that ignores its program's number passes on images that fit one program.
SMALL = [
    pytest.param(Case(1, 3, 3, 9, 40, 3, D4, "reflect"), marks=pytest.mark.slow),
    Case(2, 3, 1, 9, 7, 5, (1,), "zeros", torch.channels_last),
    Case(1, 2, 2, 13, 21, 7, (1,), "replicate"),
    Case(1, 1, 1, 5, 9, 9, (1,), "reflect"),  # too large to be unrolled
    Case(1, 1, 1, 3, 2, 5, (1, 4), "reflect"),  # reflected more than once
    Case(2, 3, 3, 9, 8, 3, D4, "zeros", torch.contiguous_format, torch.bfloat16),
    Case(1, 3, 1, 6, 11, 3, D4, "replicate", torch.channels_last, torch.bfloat16),
    Case(1, 3, 3, 7, 9, 3, (1, 2), "reflect", torch.contiguous_format, torch.float16, torch.float16),
    Case(2, 6, 6, 6, 5, 1, (1, 2), "reflect", torch.channels_last),  # two programs of three channels each
    Case(1, 5, 1, 7, 6, 3, (2,), "reflect"),  # shared taps, one channel per program but for their gradient
    Case(1, 1, 1, 1, 1, 3, (1,), "reflect"),
    # The gradient of the image is folded, up to 81 places into one, before it becomes bfloat16: 1.7e-3, not 5.1e-3.
    Case(1, 2, 2, 4, 5, 3, (8,), "replicate", torch.contiguous_format, torch.float32, torch.bfloat16),
    # The middle one of nine tiles is far from every edge, where the gradient of the image goes without masks.
    Case(1, 1, 1, 18, 67, 3, (1,), "reflect"),
    Case(1, 1, 1, 18, 67, 3, (1,), "zeros"),
    Case(1, 1, 1, 18, 67, 3, (1,), "replicate"),
]
LARGE = [
    Case(2, 3, 3, 129, 257, 3, D4, "reflect", torch.contiguous_format, torch.bfloat16),
    Case(1, 3, 1, 201, 63, 7, D4, "replicate"),
    Case(2, 8, 8, 65, 97, 5, (1, 3), "zeros", torch.channels_last),
    Case(1, 3, 3, 63, 65, 3, D4, "reflect", torch.contiguous_format, torch.bfloat16, torch.bfloat16),
]


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    """``torch.empty`` holds NaN, so that a place that no program writes shows; operations must be deterministic."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_triton_matches_the_reference(case, device):
    assert_as_reference(case, "triton", device, interpreted=device == "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_triton_matches_the_reference_on_larger_images(case):
    assert_as_reference(case, "triton", "cuda")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_delta_is_the_identity_at_every_dilation(padding, device):
    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(device)
    taps = torch.zeros(1, 3, 9, 4, 5, device=device)
    taps[:, :, 4] = 1
    result = operator_conv(image, taps.flatten(1, 2), dilations=(1, 3), padding=padding, backend="triton")
    assert torch.equal(result, image[:, None].expand(-1, 2, -1, -1, -1))


@pytest.mark.parametrize("device", DEVICES)
def test_every_tap_gets_a_gradient_and_repeats_bit_for_bit(device):
    case = Case(1, 1, 1, 5, 4, 5, (1, 2), "reflect")
    first, second = (value_and_gradients(case, "triton", inputs(case, device)) for _ in range(2))
    assert (first["taps gradient"].abs().amax((0, 2, 3)) > 0.1).all()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_that_is_not_needed_is_not_computed(device, monkeypatch):
    from opir_lightning.ops.operator_conv import launch

    case = Case(1, 1, 1, 3, 4, 3, (1,), "zeros")
    image, taps, _ = inputs(case, device)
    launched = []

    def record(kernel, *args, original=launch.launch):
        launched.append(kernel)
        original(kernel, *args)

    monkeypatch.setattr(launch, "launch", record)
    operator_conv(image, taps.requires_grad_(), backend="triton").sum().backward()
    assert launched == [launch.kernels.forward_kernel, launch.kernels.taps_gradient_kernel]
    launched.clear()
    operator_conv(image.requires_grad_(), taps.detach(), backend="triton").sum().backward()
    assert launched == [launch.kernels.forward_kernel, launch.kernels.image_gradient_kernel]


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    case = Case(1, 1, 1, 2, 3, 3, (1,), "reflect", torch.channels_last)
    image, taps, upstream = inputs(case, device)
    settings = (list(case.dilations), case.padding, case.G, "triton")
    torch.library.opcheck(OPERATOR, (image.requires_grad_(), taps.requires_grad_(), *settings))
    torch.library.opcheck(BACKWARD, (upstream, image.detach(), taps.detach(), *settings, True, True))


@pytest.mark.parametrize("device", DEVICES)
def test_taps_cut_out_of_a_wider_prediction_are_read_where_they_are(device):
    case = Case(2, 1, 1, 4, 5, 3, (1,), "zeros")
    image, taps, upstream = inputs(case, device)
    wider = torch.cat([taps, torch.full_like(taps[:, :3], torch.nan)], dim=1)
    cut = value_and_gradients(case, "triton", (image, wider[:, :9], upstream))
    whole = value_and_gradients(case, "triton", (image, taps, upstream))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


@interpreted
def test_the_place_of_a_late_program_needs_more_than_32_bits():
    """Program 9,000,000 of samples of 250 tiles is sample 36,000; its first tap is number 62,208,000,000."""
    from placing_kernel import place_kernel

    result = torch.zeros(4, dtype=torch.int64)
    number = torch.tensor([9_000_007], dtype=torch.int32)
    place_kernel[(1,)](number, result, 3, 200, 320, 27 * 64_000, 9000)
    assert result.tolist() == [36_000 * 27 * 64_000, (36_000 * 3 + 2) * 64_000, 7 * 32, 40 * 9000**2]


@pytest.mark.gpu
def test_more_than_2_to_the_31_taps():
    """The last rows of 27 taps of 81 megapixels lie beyond 2^31 elements."""
    H, W = 9000, 9000
    gen = torch.Generator("cuda").manual_seed(0)
    image = torch.rand(1, 3, H, W, generator=gen, device="cuda")
    taps = torch.randn(1, 27, H, W, generator=gen, device="cuda", dtype=torch.bfloat16).requires_grad_()
    result = operator_conv(image, taps, padding="zeros", backend="triton")
    part = operator_conv(image[:, :, -40:], taps[:, :, -40:], padding="zeros", backend="shifted")
    torch.testing.assert_close(result[..., -39:, :], part[..., -39:, :], rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(result.sum(), taps)
    shifted = torch.nn.functional.pad(image[:, 2, -40:], (1, 1, 1, 1))
    torch.testing.assert_close(gradient[0, 26, -39:].float(), shifted[0, 3:, 2:], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_auto_takes_triton_on_cuda_under_compile_and_autocast():
    case = Case(2, 3, 3, 33, 35, 3, D4, "reflect")
    image, taps, _ = inputs(case, "cuda")
    taps.requires_grad_()

    def step(backend: str) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            result = operator_conv(image, taps, dilations=D4, backend=backend)
        return torch.autograd.grad(result.square().sum(), taps)[0]

    torch.compiler.reset()
    compiled = torch.compile(operator_conv, fullgraph=True)
    assert torch.equal(compiled(image, taps, dilations=D4), operator_conv(image, taps, dilations=D4, backend="triton"))
    assert torch.equal(step("auto"), step("triton"))
    assert (step("auto") - step("shifted")).norm() / step("shifted").norm() < 5e-3
