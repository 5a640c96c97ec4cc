"""What the tests of the operator convolution share: cases, inputs, tolerances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from opir_lightning.ops.operator_conv import operator_conv

# Largest relative L2 error against the float64 reference on the same, already rounded inputs. Loosening one is a
# reviewed decision. The interpreter cuts bfloat16 stores off instead of rounding them: twice the error.
TOLERANCE = {"float32": 1e-6, "float16": 5e-4, "bfloat16": 2.5e-3, "bfloat16 in the interpreter": 5e-3}
# Two roundings one after the other; and of the few numbers of a bias the error scatters. Float64 sums of gradients that
# were rounded to bfloat16 once on the way came out with 2.6e-3 as well.
TWICE_ROUNDED = 2**0.5

PADDINGS = ("reflect", "zeros", "replicate")


class Case(NamedTuple):
    """One setting of the operator: batch, channels, tap groups, height, width, operator size and the rest."""

    B: int
    C: int
    G: int
    H: int
    W: int
    K: int
    dilations: tuple[int, ...]
    padding: str
    layout: torch.memory_format = torch.contiguous_format
    taps_dtype: torch.dtype = torch.float32
    image_dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        layout = "nhwc" if self.layout == torch.channels_last else "nchw"
        dtypes = f"{self.image_dtype}-{self.taps_dtype}".replace("torch.", "")
        shape = f"{self.B}x{self.C}x{self.H}x{self.W}"
        return f"{shape}-G{self.G}-K{self.K}-D{len(self.dilations)}-{self.padding}-{layout}-{dtypes}"


def inputs(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Image, taps and upstream gradient; made on the CPU, so that every device gets the same numbers."""
    gen = torch.Generator().manual_seed(0)
    image = torch.rand(case.B, case.C, case.H, case.W, generator=gen)
    taps = torch.randn(case.B, case.G * case.K**2, case.H, case.W, generator=gen)
    upstream = torch.randn(case.B, len(case.dilations), case.C, case.H, case.W, generator=gen)
    return (
        image.to(device, case.image_dtype, memory_format=case.layout),
        taps.to(device, case.taps_dtype, memory_format=case.layout),
        upstream.to(device, case.image_dtype),
    )


def value_and_gradients(case: Case, backend: str, tensors: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """The result and both gradients."""
    image, taps, upstream = (x.detach() for x in tensors)
    image.requires_grad_()
    taps.requires_grad_()
    options = {"dilations": case.dilations, "padding": case.padding, "backend": backend}
    result = operator_conv(image, taps, **options)
    image_grad, taps_grad = torch.autograd.grad(result, (image, taps), upstream)
    return {"result": result.detach(), "image gradient": image_grad, "taps gradient": taps_grad}


def assert_as_reference(case: Case, backend: str, device: str = "cpu", *, interpreted: bool = False) -> None:
    """The backend gives what the float64 reference gives on the same inputs, in value, both gradients and dtypes."""
    tensors = inputs(case, device)
    got = value_and_gradients(case, backend, tensors)
    double = tuple(x.double().contiguous() for x in tensors)
    want = value_and_gradients(case, "reference", double)
    dtypes = {"result": case.image_dtype, "image gradient": case.image_dtype, "taps gradient": case.taps_dtype}
    for name, value in want.items():
        assert_close_to(got[name], value, dtypes[name], name, interpreted=interpreted)


def assert_close_to(
    got: Tensor, want: Tensor, dtype: torch.dtype, name: str, *, interpreted: bool = False, products: str | None = None
) -> None:
    """Dtype, shape and relative L2 error; ``products`` names a dtype that rounds on the way as well."""
    assert got.dtype == dtype, name
    assert got.shape == want.shape, name
    kinds = [str(dtype).removeprefix("torch."), *([products] if products else [])]
    kinds = [f"{k} in the interpreter" if k == "bfloat16" and interpreted else k for k in kinds]
    allowed = max(TOLERANCE[kind] for kind in kinds) * (TWICE_ROUNDED if products else 1)
    error = ((got.double() - want).norm() / want.norm()).item()
    assert error <= allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.1e}"
