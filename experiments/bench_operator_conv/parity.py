"""Nothing is timed that is wrong: every way is compared with the float64 reference first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from cases import FUSED_SHIFTED, FUSED_TRITON, Setting
from torch import Tensor
from ways import Tensors, Value, Way, make_tensors, single_gradient

# Largest relative L2 error, by the dtype of the tensor that is compared.
TOLERANCE = {"float32": 1e-6, "float16": 5e-4, "bfloat16": 2.5e-3}
# Gradients behind a projection of 16-bit features are rounded twice, that of the taps and its product, and those of
# bias and mix are a few numbers only, that scatter. Largest seen with bfloat16: 3.1e-3.
TWICE_ROUNDED = 2**0.5
# Sums over all pixels, whose terms nearly cancel: their float32 rounding weighs more.
SUMS = ("kernel", "weight", "bias", "mix")
SUMS_TOLERANCE = 1e-5
# Height and width in pixels: crosses the tiles of the kernels (at most 32 x 128), leaves part of one empty, and is
# larger than every margin.
HEIGHT, WIDTH = 37, 139


class Error(NamedTuple):
    """Relative L2 error of one tensor, and what is allowed."""

    tensor: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # a NaN does not pass

    def __str__(self) -> str:
        return f"{self.tensor}: relative error {self.error:.2e}, allowed {self.allowed:.1e}"


def compare(way: Way, setting: Setting, device: str) -> list[Error]:
    """Errors of value and gradients of a way on a small picture with the same settings, inputs rounded alike."""
    small = setting._replace(H=HEIGHT, W=WIDTH)
    tensors = make_tensors(small, device, seed=1)
    double = {name: tensor.double() for name, tensor in tensors.items()}
    want = _value_and_gradients(way, way.oracle, small, double)
    _poison(want.values())
    got = _value_and_gradients(way, way.value, small, tensors)
    for of_image, name in ((True, "image"), (False, "taps")) if way.backend else ():
        _poison(want.values())
        got[f"{name} gradient alone"] = single_gradient(small, tensors, way.backend, of_image=of_image)
        want[f"{name} gradient alone"] = want[f"{name} gradient"]
    errors = []
    for name, value in got.items():
        dtype = tensors["image" if name == "result" else name.split()[0]].dtype
        if value.dtype != dtype or value.shape != want[name].shape:
            raise TypeError(f"{name}: {value.dtype} {tuple(value.shape)}, not {dtype} {tuple(want[name].shape)}")
        error = ((value.double() - want[name]).norm() / want[name].norm()).item()
        errors.append(Error(name, error, allowed(way.name, small, name, dtype)))
    return errors


def allowed(way: str, setting: Setting, name: str, dtype: torch.dtype) -> float:
    """Largest relative error of a result or gradient.

    With taps predicted from 16-bit features, a projection of its own writes 16-bit taps: all that follows carries
    their rounding, whatever its dtype. The fused operator never writes them, so its result is held to float32, with
    room for sums on the matrix units; in its gradients it may round as much.
    """
    largest = TOLERANCE[str(dtype).removeprefix("torch.")]
    if name.split()[0] in SUMS:
        largest = max(largest, SUMS_TOLERANCE)
    if way in (FUSED_SHIFTED, FUSED_TRITON) and name == "result":
        return max(largest, SUMS_TOLERANCE)
    if setting.F and setting.taps != "float32":
        largest = max(largest, TOLERANCE[setting.taps]) * (1 if name == "result" else TWICE_ROUNDED)
    return largest


def failure(way: Way, setting: Setting, device: str) -> str | None:
    """What is wrong with a way at a setting; None if nothing is."""
    return "; ".join(str(error) for error in compare(way, setting, device) if not error.passed) or None


def same_kernels(setting: Setting) -> Setting:
    """The setting without its size: what passes parity at one size is not compared again at the next."""
    return setting._replace(H=HEIGHT, W=WIDTH)


def _value_and_gradients(way: Way, value: Value, setting: Setting, tensors: Tensors) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_(name in way.differentiated) for name, tensor in tensors.items()}
    result = value(setting, leaves)
    gradients = torch.autograd.grad(result, [leaves[name] for name in way.differentiated], leaves["upstream"])
    named = dict(zip((f"{name} gradient" for name in way.differentiated), gradients, strict=True))
    return {"result": result.detach(), **named}


def _poison(like: Iterable[Tensor]) -> None:
    """Fill freed memory of these sizes with NaN: what a kernel forgets to write must not hold an older right result."""
    shapes = [(tensor.shape, tensor.device) for tensor in like]
    dtypes = (torch.float32, torch.bfloat16)
    held = [torch.full(shape, torch.nan, dtype=dtype, device=at) for shape, at in shapes for dtype in dtypes]
    del held
