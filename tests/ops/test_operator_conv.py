"""The operator convolution: its definition by numbers, the shifted backend, the registration, the checks."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from operator_conv_cases import PADDINGS, Case, assert_as_reference, inputs, value_and_gradients
from torch import Tensor

from opir_lightning.ops.operator_conv import dispatch, operator_conv, shifted
from opir_lightning.ops.operator_conv.padding import fold, widen

D4 = (1, 2, 3, 4)
NUMPY_MODE = {"reflect": "reflect", "replicate": "edge", "zeros": "constant"}
CPU_BACKENDS = ("reference", "shifted")
OPERATOR = torch.ops.opir_lightning.operator_conv.default
BACKWARD = torch.ops.opir_lightning.operator_conv_backward.default


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    """``torch.empty`` holds NaN, so that a place that is never written shows; operations must be deterministic."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------------------------------------- meaning, by numbers


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("C", "G", "K"), [(3, 3, 3), (3, 1, 5), (1, 1, 1)])
def test_a_delta_is_the_identity_at_every_dilation(backend, padding, C, G, K):
    image = torch.rand(2, C, 6, 7, generator=torch.Generator().manual_seed(0))
    taps = torch.zeros(2, G, K * K, 6, 7)
    taps[:, :, K * K // 2] = 1
    result = operator_conv(image, taps.flatten(1, 2), dilations=D4, padding=padding, backend=backend)
    assert torch.equal(result, image[:, None].expand(-1, 4, -1, -1, -1))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    ("padding", "corner"),
    # Window of the corner pixel, times taps 0..8: zeros 4*1 + 5*2 + 7*4 + 8*5; reflect 5 4 5 / 2 1 2 / 5 4 5;
    # replicate 1 1 2 / 1 1 2 / 4 4 5.
    [("zeros", 82), ("reflect", 132), ("replicate", 114)],
)
def test_three_by_three_by_hand(backend, padding, corner):
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    taps = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 3, 3)
    near, far = operator_conv(image, taps, dilations=(1, 2), padding=padding, backend=backend)[0, :, 0]
    assert near[1, 1] == 240  # 0*1 + 1*2 + ... + 8*9: correlation, no flip
    assert near[0, 0] == corner
    # Two pixels from the centre everything lies outside. zeros: only the central tap sees anything, 4*5. reflect: rows
    # and columns -1 and 3 return to 1, so every tap sees the 5, 36*5. replicate: the edges, 0*1 + ... + 8*9 again.
    assert far[1, 1] == {"zeros": 20, "reflect": 180, "replicate": 240}[padding]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_each_pixel_and_channel_has_its_own_taps(backend):
    image = torch.arange(24.0).view(1, 2, 3, 4)
    taps = torch.zeros(1, 2, 9, 3, 4)
    taps[0, 0, 5, 1, 1] = 10  # channel 0, pixel (1, 1): ten times the right neighbour
    taps[0, 1, 1, 2, 3] = -1  # channel 1, pixel (2, 3): minus the upper neighbour
    result = operator_conv(image, taps.flatten(1, 2), dilations=(1, 2), padding="zeros", backend=backend)
    want = torch.zeros(1, 2, 2, 3, 4)
    want[0, :, 0, 1, 1] = torch.tensor([60.0, 70.0])  # image 6 and, two to the right, 7
    want[0, :, 1, 2, 3] = torch.tensor([-19.0, -15.0])
    assert torch.equal(result, want)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_constant_taps_are_a_dilated_conv2d(backend, padding):
    gen = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 11, 13, generator=gen, dtype=torch.float64)
    weight = torch.randn(3, 25, generator=gen, dtype=torch.float64)
    taps = weight.view(1, 75, 1, 1).expand(2, 75, 11, 13)
    result = operator_conv(image, taps, dilations=D4, padding=padding, backend=backend)
    mode = "constant" if padding == "zeros" else padding
    for layer, d in zip(result.unbind(1), D4, strict=True):
        padded = F.pad(image, (2 * d,) * 4, mode=mode)
        torch.testing.assert_close(layer, F.conv2d(padded, weight.view(3, 1, 5, 5), dilation=d, groups=3))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (4, 2)])
def test_any_size_pads_as_numpy_does(backend, padding, size):
    """The margin, 12, is many times the image: reflection repeats."""
    H, W = size
    image = torch.rand(1, 1, H, W, generator=torch.Generator().manual_seed(0))
    padded = np.pad(image[0, 0].numpy(), 12, mode=NUMPY_MODE[padding])
    dilations = (1, 3, 4)
    for u, v in [(0, 0), (0, 6), (2, 5), (6, 3)]:
        taps = torch.zeros(1, 49, H, W)
        taps[0, 7 * u + v] = 1
        result = operator_conv(image, taps, dilations=dilations, padding=padding, backend=backend)
        for i, d in enumerate(dilations):
            y, x = 12 + (u - 3) * d, 12 + (v - 3) * d
            np.testing.assert_array_equal(result[0, i, 0].numpy(), padded[y : y + H, x : x + W])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (5, 4), (9, 13)])
@pytest.mark.parametrize("margin", [0, 1, 4, 12])
def test_fold_is_the_adjoint_of_widen(padding, size, margin):
    gen = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, *size, generator=gen, dtype=torch.float64)
    wide = widen(image, margin, padding, torch.float64)
    pads = ((0, 0), (0, 0), (margin, margin), (margin, margin))
    np.testing.assert_array_equal(wide.numpy(), np.pad(image.numpy(), pads, mode=NUMPY_MODE[padding]))
    other = torch.randn(wide.shape, generator=gen, dtype=torch.float64)
    there = (wide * other).sum()
    assert torch.isclose(there, (image * fold(other, margin, padding, torch.float64)).sum(), rtol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_gradients_are_the_adjoints(padding):
    """<upstream, A image> = <A^T upstream, image>, and the same for the taps: the operator is linear in each."""
    case = Case(2, 3, 3, 7, 6, 5, D4, padding)
    image, taps, upstream = (x.double() for x in inputs(case))
    got = value_and_gradients(case, "shifted", (image, taps, upstream))
    product = (got["result"] * upstream).sum()
    assert torch.isclose(product, (got["image gradient"] * image).sum(), rtol=1e-12)
    assert torch.isclose(product, (got["taps gradient"] * taps).sum(), rtol=1e-12)


def test_shared_taps_are_the_same_taps_for_each_channel():
    case = Case(2, 3, 1, 6, 5, 3, (1, 2), "reflect")
    image, taps, upstream = inputs(case)
    shared = value_and_gradients(case, "shifted", (image, taps, upstream))
    own = value_and_gradients(case, "shifted", (image, taps.repeat(1, 3, 1, 1), upstream))
    assert torch.equal(shared["result"], own["result"])
    assert torch.equal(shared["image gradient"], own["image gradient"])
    summed = own["taps gradient"].unflatten(1, (3, 9)).sum(1)
    torch.testing.assert_close(shared["taps gradient"], summed, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------- the shifted path

PARITY = [
    Case(2, 3, 3, 17, 19, 3, D4, "reflect"),
    Case(5, 3, 3, 6, 7, 3, D4, "reflect", torch.channels_last),
    Case(1, 3, 1, 13, 9, 5, (1,), "zeros", torch.channels_last),
    Case(3, 3, 1, 5, 7, 7, D4, "replicate"),
    Case(1, 1, 1, 12, 31, 7, (1,), "reflect"),
    Case(2, 4, 4, 9, 8, 1, D4, "zeros"),
    Case(1, 3, 3, 3, 2, 5, D4, "reflect"),
    Case(2, 3, 3, 8, 9, 3, (3,), "replicate", torch.channels_last, torch.bfloat16),
    Case(2, 3, 1, 10, 7, 5, D4, "reflect", torch.contiguous_format, torch.bfloat16),
    Case(1, 3, 3, 9, 11, 3, D4, "zeros", torch.contiguous_format, torch.bfloat16, torch.bfloat16),
    Case(1, 3, 1, 9, 11, 3, (1,), "reflect", torch.contiguous_format, torch.float32, torch.bfloat16),
    Case(1, 3, 3, 4, 5, 1, (1,), "reflect", torch.contiguous_format, torch.bfloat16),
]


@pytest.mark.parametrize("tile", [40, 300, shifted.TILE])
@pytest.mark.parametrize("case", PARITY, ids=str)
def test_shifted_matches_the_reference(case, tile, monkeypatch):
    """40 values of a tile are single rows, 300 a few rows or samples with a rest, the default the whole batch."""
    monkeypatch.setattr(shifted, "TILE", tile)
    assert_as_reference(case, "shifted")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    ("C", "G", "K", "dilations", "padding"),
    [
        (2, 2, 3, (1, 2), "reflect"),
        (2, 1, 3, (2,), "replicate"),
        (1, 1, 5, (1,), "zeros"),
        (3, 3, 1, (1, 4), "reflect"),
    ],
)
def test_gradcheck(backend, C, G, K, dilations, padding):
    gen = torch.Generator().manual_seed(0)
    image = torch.rand(1, C, 3, 4, generator=gen, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(1, G * K * K, 3, 4, generator=gen, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, t: Tensor) -> Tensor:
        return operator_conv(x, t, dilations=dilations, padding=padding, backend=backend)

    assert torch.autograd.gradcheck(function, (image, taps))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("G", [1, 3])
def test_every_tap_gets_a_gradient(backend, G):
    """A known failure of such kernels: only taps 0, 1, 4, 9, ... of a 7 x 7 operator learn."""
    case = Case(1, 3, G, 6, 5, 7, (1, 2), "reflect")
    gradient = value_and_gradients(case, backend, inputs(case))["taps gradient"]
    assert (gradient.abs().amax((0, 2, 3)) > 0.1).all()


def test_backward_repeats_bit_for_bit_and_leaves_its_inputs_alone():
    case = Case(3, 3, 3, 11, 13, 3, D4, "reflect")
    tensors = inputs(case)
    copies = [x.clone() for x in tensors]
    first, second = (value_and_gradients(case, "shifted", tensors) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))


def test_a_gradient_that_is_not_needed_is_not_computed(monkeypatch):
    case = Case(1, 3, 3, 5, 6, 3, (1, 2), "reflect")
    image, taps, _ = inputs(case)
    calls = []
    for name in ("fold", "_correlate"):  # the last step of the image's gradient and the only one of the taps'
        original = getattr(shifted, name)
        monkeypatch.setattr(shifted, name, lambda *a, n=name, f=original: calls.append(n) or f(*a))
    operator_conv(image, taps.requires_grad_(), backend="shifted").sum().backward()
    assert set(calls) == {"_correlate"}
    assert taps.grad is not None
    calls.clear()
    operator_conv(image.requires_grad_(), taps.detach(), backend="shifted").sum().backward()
    assert set(calls) == {"fold"}


def test_only_the_reference_can_be_differentiated_twice():
    case = Case(1, 1, 1, 3, 3, 3, (1,), "reflect")
    image, taps, _ = (x.double().requires_grad_() for x in inputs(case))
    for backend in CPU_BACKENDS:
        result = operator_conv(image, taps, backend=backend).square().sum()
        (gradient,) = torch.autograd.grad(result, image, create_graph=True)
        if backend == "reference":
            assert torch.autograd.grad(gradient.sum(), taps)[0].abs().sum() > 0
        else:
            with pytest.raises(RuntimeError, match="no autograd formula was registered"):
                torch.autograd.grad(gradient.sum(), taps)


def test_an_empty_batch_stays_empty():
    image, taps = torch.zeros(0, 3, 4, 5, requires_grad=True), torch.zeros(0, 27, 4, 5)
    result = operator_conv(image, taps, dilations=(1, 2))
    assert result.shape == (0, 2, 3, 4, 5)
    result.sum().backward()
    assert image.grad.shape == image.shape


# ------------------------------------------------------------------------------------ registration, compile, autocast


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 3, 3, 4, 5, 3, (1, 2), "reflect"),
        Case(1, 3, 1, 3, 4, 5, (1,), "zeros", torch.channels_last),
        Case(1, 1, 1, 1, 1, 3, (1, 2), "replicate", torch.channels_last, torch.bfloat16),
    ],
    ids=str,
)
def test_opcheck(case):
    image, taps, upstream = inputs(case)
    settings = (list(case.dilations), case.padding, case.G, "shifted")
    torch.library.opcheck(OPERATOR, (image.requires_grad_(), taps.requires_grad_(), *settings))
    image, taps = image.detach(), taps.detach()
    for need_image, need_taps in [(True, True), (False, True), (True, False)]:
        torch.library.opcheck(BACKWARD, (upstream, image, taps, *settings, need_image, need_taps))


def test_compile_gives_the_same_values_and_gradients_at_two_sizes():
    def model(x: Tensor, t: Tensor) -> Tensor:
        return operator_conv(x, t, dilations=(1, 2)).mul(2).sum(1)

    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for case in (Case(2, 3, 3, 6, 7, 3, (1, 2), "reflect"), Case(1, 3, 3, 9, 5, 3, (1, 2), "reflect")):
        image, taps, upstream = inputs(case)
        results = []
        for function in (model, compiled):
            x, t = image.clone().requires_grad_(), taps.clone().requires_grad_()
            y = function(x, t)
            results.append((y.detach(), *torch.autograd.grad(y, (x, t), upstream[:, 0])))
        assert all(torch.equal(got, want) for want, got in zip(*results, strict=True))


@pytest.mark.slow
def test_inductor_gives_the_same_values_and_gradients():
    case = Case(2, 3, 3, 6, 7, 3, (1, 2), "reflect")
    torch.compiler.reset()
    image, taps, upstream = inputs(case)
    results = []
    for function in (operator_conv, torch.compile(operator_conv, fullgraph=True)):
        x, t = image.clone().requires_grad_(), taps.clone().requires_grad_()
        y = function(x, t, dilations=(1, 2)).mul(2)
        results.append((y.detach(), *torch.autograd.grad(y, (x, t), upstream)))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_autocast_rounds_the_taps_and_nothing_else(backend):
    case = Case(1, 3, 3, 6, 7, 3, (1, 2), "reflect")
    image, taps, upstream = inputs(case)
    taps.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = operator_conv(image, taps, dilations=(1, 2), backend=backend)
        double = operator_conv(image.double(), taps.double(), dilations=(1, 2), backend=backend)
    want = operator_conv(image, taps.detach().bfloat16().float(), dilations=(1, 2), backend=backend)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert (double - got).norm() / double.norm() > 1e-4  # float64 taps were left alone, the others rounded
    (gradient,) = torch.autograd.grad(got, taps, upstream)
    assert gradient.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ choice and messages


def test_auto_takes_shifted_on_the_cpu_and_says_why(monkeypatch, caplog):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    taken = []
    monkeypatch.setattr(shifted, "forward", lambda *a, f=shifted.forward: taken.append("shifted") or f(*a))
    with caplog.at_level(logging.DEBUG, logger=dispatch.__name__):
        operator_conv(torch.rand(1, 1, 3, 3), torch.rand(1, 9, 3, 3))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the kernels would run, but far slower
    operator_conv(torch.rand(1, 1, 3, 3), torch.rand(1, 9, 3, 3))
    assert taken == ["shifted", "shifted"]
    assert "the image is on 'cpu' and the kernels need a CUDA device" in caplog.text


def test_a_named_triton_raises_with_the_reason(monkeypatch):
    image, taps = torch.rand(1, 1, 3, 3), torch.rand(1, 9, 3, 3)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="sum in float32 and the input is float64"):
        operator_conv(image.double(), taps.double(), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="the image is on 'cpu' and the kernels need a CUDA device"):
        operator_conv(image, taps, backend="triton")
    monkeypatch.setattr(dispatch, "_TRITON_INSTALLED", False)
    with pytest.raises(RuntimeError, match=r"run here: the package 'triton' is not installed\. Use backend='auto'\."):
        operator_conv(image, taps, backend="triton")


IMAGE, TAPS = torch.rand(2, 3, 4, 5), torch.rand(2, 27, 4, 5)


@pytest.mark.parametrize(
    ("image", "taps", "options", "message"),
    [
        (IMAGE[0], TAPS, {}, r"image is \(3, 4, 5\) .* needed are \(B, C, H, W\)"),
        (IMAGE, TAPS[:, :, :3], {}, r"taps are \(2, 27, 3, 5\) .* needed is .*\(2, G\*K\*K, 4, 5\)"),
        (IMAGE, TAPS[:1], {}, r"taps are \(1, 27, 4, 5\)"),
        (IMAGE, TAPS[0], {}, r"taps are \(27, 4, 5\); needed are \(B, C, H, W\)"),
        (IMAGE, TAPS[..., :3], {}, r"taps are \(2, 27, 4, 3\) .* needed is .*\(2, G\*K\*K, 4, 5\)"),
        (IMAGE[:, :0], TAPS, {}, "at least one channel and one pixel"),
        (IMAGE[:, :, :0], TAPS[:, :, :0], {}, "at least one channel and one pixel"),
        (IMAGE[..., :0], TAPS[..., :0], {}, "at least one channel and one pixel"),
        (IMAGE, TAPS[:, :12], {}, r"12 channels for 3 image channels; needed is K\*K or 3\*K\*K, K odd"),
        (IMAGE, TAPS[:, :4], {}, "4 channels"),
        (IMAGE, TAPS[:, :0], {}, "taps have 0 channels"),
        (IMAGE, TAPS, {"groups": 1}, r"27 channels for 3 image channels; needed is 1\*K\*K"),
        (IMAGE, TAPS, {"groups": 2}, "groups is 2; needed is 1 or the image's 3"),
        (IMAGE.int(), TAPS, {}, "image is torch.int32"),
        (IMAGE, TAPS.int(), {}, "taps are torch.int32"),
        (IMAGE, TAPS.to("meta"), {}, "image is on 'cpu' and taps on 'meta'"),
        (IMAGE, TAPS, {"dilations": ()}, r"dilations is \(\)"),
        (IMAGE, TAPS, {"dilations": (1, 0)}, "at least 1"),
        (IMAGE, TAPS, {"dilations": 2}, "dilations is 2"),
        (IMAGE, TAPS, {"padding": "circular"}, "padding is 'circular', needed is one of reflect, zeros, replicate"),
        (IMAGE, TAPS, {"backend": "cuda"}, "backend is 'cuda', needed is one of auto, reference, shifted, triton"),
    ],
)
def test_what_does_not_fit_is_named(image, taps, options, message):
    with pytest.raises(ValueError, match=message):
        operator_conv(image, taps, **options)


def test_where_the_channels_leave_the_groups_open_they_must_be_given():
    """9 channels and 81 taps: one 9 x 9 operator for all, or a 3 x 3 one for each."""
    image = torch.rand(1, 9, 6, 6, generator=torch.Generator().manual_seed(0))
    taps = torch.zeros(1, 81, 6, 6)
    taps[:, 40] = 1  # the centre of the 9 x 9 operator; of the fifth 3 x 3 one
    with pytest.raises(ValueError, match="needed is groups=1 or groups=9"):
        operator_conv(image, taps)
    assert torch.equal(operator_conv(image, taps, groups=1)[:, 0], image)
    only_fifth = torch.zeros_like(image)
    only_fifth[:, 4] = image[:, 4]
    assert torch.equal(operator_conv(image, taps, groups=9)[:, 0], only_fifth)


@pytest.mark.parametrize("backend", ["shifted", "triton"])
def test_inference_mode_gives_the_registered_operators_values(backend):
    image, taps = torch.rand(1, 3, 5, 6), torch.rand(1, 27, 5, 6)
    registered = operator_conv(image, taps, dilations=(1, 2), backend=backend)
    with torch.inference_mode():
        direct = operator_conv(image, taps, dilations=(1, 2), backend=backend)
    assert torch.equal(direct, registered)
