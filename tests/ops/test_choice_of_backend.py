"""Which backend is taken and why, without a GPU as well: what only claims to be on one has shapes and no numbers."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from opir_lightning.ops.operator_conv import operator_conv
from opir_lightning.ops.operator_conv.dispatch import why_not_triton
from opir_lightning.ops.predict_and_apply import dispatch as fused_dispatch
from opir_lightning.ops.predict_and_apply import predict_and_apply

OPERATORS = (torch.ops.opir_lightning.operator_conv.default, torch.ops.opir_lightning.predict_and_apply.default)


class Taken(TorchDispatchMode):
    """The backends that the registered operators were called with."""

    def __init__(self) -> None:
        super().__init__()
        self.backends: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in OPERATORS:
            self.backends.append(args[-1])
        return func(*args, **(kwargs or {}))


def fused_inputs(dilations: int = 1, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    shapes = ((1, 3, 5, 6), (1, 4, 5, 6), (1, 30, 4), (1, 30), (1, dilations, 3))
    return [torch.rand(shape, dtype=dtype, device=device) for shape in shapes]


@pytest.fixture
def _compiled(monkeypatch):
    """As on a machine with a GPU: the kernels are not interpreted, and take nothing on the CPU."""
    pytest.importorskip("triton", reason="the package 'triton' is not installed")
    importlib.import_module("opir_lightning.ops.predict_and_apply.launch")  # kernels stay what they are when imported
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize(
    ("dtype", "backend", "taken"),
    [
        (torch.float32, "auto", "triton"),
        (torch.bfloat16, "auto", "triton"),
        (torch.float64, "auto", "shifted"),
        (torch.float32, "shifted", "shifted"),
        (torch.float32, "triton", "triton"),
    ],
)
def test_on_a_gpu_the_kernels_are_taken_where_they_can(dtype, backend, taken, caplog):
    with caplog.at_level(logging.DEBUG, logger="opir_lightning"), FakeTensorMode(), Taken() as calls:
        image, taps = (torch.empty(1, channels, 5, 6, dtype=dtype, device="cuda") for channels in (3, 27))
        operator_conv(image, taps, backend=backend)
    assert calls.backends == [taken]
    why = "operator_conv takes 'shifted': the kernels sum in float32 and the input is float64"
    assert caplog.messages == ([why] if dtype == torch.float64 else [])


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("backend", ["auto", "shifted", "triton"])
def test_on_a_gpu_the_fused_kernels_are_taken_where_they_can(backend, caplog):
    with caplog.at_level(logging.DEBUG, logger="opir_lightning"), FakeTensorMode(), Taken() as calls:
        predict_and_apply(*fused_inputs(device="cuda"), kernel_size=3, groups=3, backend=backend)
    assert calls.backends == ["triton" if backend == "auto" else backend]
    assert caplog.messages == []


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize(
    ("dilations", "dtype", "reason"),
    [
        (11, torch.float32, "30 rows at 11 dilations are more than the kernels unroll"),
        (1, torch.float64, "the kernels sum in float32 and the input is float64"),
    ],
)
def test_on_a_gpu_what_the_fused_kernels_do_not_take_is_stored_between(dilations, dtype, reason, monkeypatch, caplog):
    """In separate steps it still has the kernels of ``operator_conv``; strips would be many small launches."""
    steps = []
    monkeypatch.setattr(fused_dispatch, "unfused", lambda *arguments: steps.append(arguments))
    with caplog.at_level(logging.DEBUG, logger="opir_lightning"), FakeTensorMode(), Taken() as calls:
        tensors = fused_inputs(dilations, dtype, "cuda")
        predict_and_apply(*tensors, kernel_size=3, groups=3, dilations=range(1, dilations + 1))
    ((*given, settings, backend),) = steps
    assert all(got is tensor for got, tensor in zip(given, tensors, strict=True))
    assert settings == (3, 3, list(range(1, dilations + 1)), "reflect")
    assert backend == "auto"
    assert calls.backends == []
    assert caplog.messages == [f"predict_and_apply goes unfused: {reason}"]


def test_on_a_cpu_the_strips_are_taken(monkeypatch, caplog):
    """Also where the kernels could be interpreted: that is far slower."""
    for interpreted in ("1", "0"):
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        with caplog.at_level(logging.DEBUG, logger="opir_lightning"), Taken() as calls:
            predict_and_apply(*fused_inputs(), kernel_size=3, groups=3)
        assert calls.backends == ["shifted"]
    assert caplog.messages == []


def test_where_nothing_is_recorded_the_registered_operators_are_passed_by():
    """Their first call loads torch's compiler, which takes longer than to restore a picture."""
    image, taps = torch.rand(1, 3, 5, 6), torch.rand(1, 27, 5, 6)
    for mode, times in ((torch.inference_mode, 0), (torch.no_grad, 2)):
        with mode(), Taken() as calls:
            operator_conv(image, taps)
            predict_and_apply(*fused_inputs(), kernel_size=3, groups=3)
        assert len(calls.backends) == times


@pytest.mark.usefixtures("_compiled")
def test_unfused_the_named_backend_runs_or_says_why_not():
    reason = "the image is on 'cpu' and the kernels need a CUDA device"
    for fused, name in ((True, "predict_and_apply"), (False, "operator_conv")):
        with pytest.raises(RuntimeError, match=f"^{name}: the backend 'triton' can't run here: {reason}"):
            predict_and_apply(*fused_inputs(), kernel_size=3, groups=3, backend="triton", fused=fused)


@pytest.mark.parametrize(
    ("height", "width", "fits"),
    [(65536, 32768, False), (2**30, 2, False), (2, 2**30, False), (46340, 46341, True), (1, 2**31 - 1, True)],
)
def test_a_plane_of_2_to_the_31_pixels_is_too_large_for_the_kernels(height, width, fits, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    image, taps = (torch.empty(1, channels, height, width, device="meta") for channels in (1, 9))
    reason = why_not_triton(image, taps)
    assert reason == (None if fits else "offsets within one plane are 32-bit and the image has 2^31 pixels or more")


@pytest.mark.parametrize("fused", [True, False])
def test_the_definition_can_be_differentiated_twice(fused):
    tensors = [tensor.requires_grad_() for tensor in fused_inputs()]
    result = predict_and_apply(*tensors, kernel_size=3, groups=3, backend="reference", fused=fused)
    (gradient,) = torch.autograd.grad(result.square().sum(), tensors[0], create_graph=True)
    assert torch.autograd.grad(gradient.sum(), tensors[1])[0].abs().sum() > 0
