"""Compile every kernel ahead of time for sm_90, without a GPU, and tell what it takes of the chip.

Run by hand it prints a table; with ``--json`` it prints the same for a program. The kernels and their constants are
those that a launch would use: the launches are made, and caught before they reach the device.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Before the operator is imported: whether that alone brings triton in.
import opir_lightning.ops.operator_conv
import opir_lightning.ops.predict_and_apply  # noqa: F401

BARE = "triton" not in sys.modules

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from opir_lightning.ops.operator_conv import kernels as operator_kernels  # noqa: E402
from opir_lightning.ops.operator_conv import launch as operator_launch  # noqa: E402
from opir_lightning.ops.predict_and_apply import kernels as fused_kernels  # noqa: E402
from opir_lightning.ops.predict_and_apply import launch as fused_launch  # noqa: E402
from opir_lightning.ops.predict_and_apply.settings import Settings  # noqa: E402

D4 = [1, 2, 3, 4]
WIDE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


class Operator(NamedTuple):
    """A call of the operator convolution."""

    name: str
    C: int
    groups: int
    K: int
    dilations: list[int]
    padding: str = "reflect"
    taps: torch.dtype = BRAIN
    image: torch.dtype = WIDE
    size: tuple[int, int] = (64, 64)


class Fused(NamedTuple):
    """A call of predict and apply."""

    name: str
    groups: int
    K: int
    dilations: list[int]
    F: int
    features: torch.dtype = BRAIN


OPERATORS = [
    Operator("default: K 3, per colour, 4 dilations", 3, 3, 3, D4),
    Operator("K 11 of 32 channels, float16", 32, 32, 11, [1], "replicate", HALF, HALF),
]
MORE_OPERATORS = [  # unrolled in full, the larger ones take most of the time of all
    Operator("K 3 shared by 5, tiny image", 5, 1, 3, [4], taps=BRAIN, image=BRAIN, size=(3, 3)),
    Operator("K 3 shared by 3, float32 taps", 3, 1, 3, [2], taps=WIDE),
    Operator("K 5 per colour, 4 dilations, zeros", 3, 3, 5, D4, "zeros"),
    Operator("K 5 shared", 3, 1, 5, [1]),
    Operator("K 7 shared, float32 taps", 3, 1, 7, [1], taps=WIDE),
]
FUSED = [
    Fused("default, 16 features", 3, 3, D4, 16),
]
MORE_FUSED = [
    Fused("default, 16 features, float32", 3, 3, D4, 16, WIDE),
    Fused("K 5 shared, 32 features", 1, 5, [1], 32),
    Fused("default, 24 features, float16", 3, 3, D4, 24, HALF),
    Fused("default, 32 features", 3, 3, D4, 32),
    Fused("K 7 shared, 32 features", 1, 7, [1], 32),
]


class Job(NamedTuple):
    """What one compilation is given; plain values, so that it can go to another process."""

    name: str
    module: str
    kernel: str
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int


def jobs(more: bool) -> list[Job]:
    """The launches of all cases, each kernel with each set of constants once."""
    operators = OPERATORS + (MORE_OPERATORS if more else [])
    found = [*_operator_jobs(operators), *_fused_jobs(FUSED + (MORE_FUSED if more else []))]
    return list({(job.kernel, str(job.signature), str(job.constants)): job for job in found}.values())


def _operator_jobs(cases: list[Operator]) -> Iterator[Job]:
    for case in cases:
        caught: list[Any] = []
        operator_launch.launch = lambda *arguments, c=caught: c.append(arguments)
        image = torch.zeros(1, case.C, *case.size, dtype=case.image)
        taps = torch.zeros(1, case.groups * case.K**2, *case.size, dtype=case.taps)
        options = (case.dilations, case.padding, case.groups)
        grad = torch.zeros(1, len(case.dilations), case.C, *case.size, dtype=case.image)
        operator_launch.forward(image, taps, *options)
        operator_launch.backward(grad, image, taps, *options, True, True)
        for kernel, tensors, _, _, channels, tile, settings in caught:
            constants = {**settings, "CH": channels, "ROWS": tile.ROWS, "COLUMNS": tile.COLUMNS}
            # The bases of samples and channels are 64-bit in the kernels; so may the distance of two samples be.
            yield _job(case.name, operator_kernels, kernel, tensors, constants, tile.warps, taps_stride="i64")


class _Catch:
    """Stands for a kernel and keeps what it would be launched with."""

    def __init__(self, kernel: Any, caught: list[Any]) -> None:
        self.kernel, self.caught = kernel, caught

    def __getitem__(self, grid: Any) -> Any:
        return lambda *tensors, **constants: self.caught.append((self.kernel, tensors, constants))


def _fused_jobs(cases: list[Fused]) -> Iterator[Job]:
    for case in cases:
        settings = Settings(case.K, case.groups, case.dilations, "reflect")
        N, D = settings.taps + 3, len(case.dilations)
        caught: list[Any] = []

        names = [name for name in vars(fused_kernels) if name.endswith("_kernel")]
        real = {name: getattr(fused_kernels, name) for name in names}
        for name, kernel in real.items():
            setattr(fused_kernels, name, _Catch(kernel, caught))
        image, features = torch.zeros(1, 3, 64, 64), torch.zeros(1, case.F, 64, 64, dtype=case.features)
        rest = torch.zeros(1, N, case.F), torch.zeros(1, N), torch.zeros(1, D, 3)
        fused_launch.forward(image, features, *rest, settings)
        if case.features != WIDE:  # with float32 features the gradients go another way
            needed = [False, True, True, True, True]
            fused_launch.backward(image, image, features, *rest, settings, needed)
        for name, kernel in real.items():
            setattr(fused_kernels, name, kernel)
        for kernel, arguments, options in caught:
            tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
            constants = {name: value for name, value in options.items() if name in kernel.arg_names}
            yield _job(case.name, fused_kernels, kernel, tensors, constants, options["num_warps"])


def _job(name: str, module: Any, kernel: Any, tensors: Any, constants: dict[str, Any], warps: int, **sizes: str) -> Job:
    short = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
    signature = dict(zip(kernel.arg_names, (short[t.dtype] for t in tensors), strict=False))
    signature |= {n: sizes.get(n, "i32") for n in kernel.arg_names if n not in signature and n not in constants}
    return Job(name, module.__name__, kernel.__name__, signature, constants, warps)


def compile_job(job: Job) -> dict[str, Any]:
    """Compile for sm_90; returns what it takes, counted in the machine code."""
    kernel = getattr(sys.modules[job.module], job.kernel)
    signature = job.signature | dict.fromkeys(job.constants, "constexpr")
    source = ASTSource(
        fn=kernel, signature={n: signature[n] for n in kernel.arg_names}, constexprs=job.constants, attrs={}
    )
    options = {"num_warps": job.warps, "num_stages": 1, "enable_fp_fusion": True}
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert ".target sm_90" in done.asm["ptx"]
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _run(tools / "nvdisasm", "-c", file.name)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()  # type: ignore[union-attr]
    return {
        "case": job.name,
        "kernel": f"{job.module.split('.')[-2]}.{job.kernel}",
        "registers": int(registers),
        "stack": int(stack),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?!NOP)", code, re.MULTILINE)),
        "barriers": len(re.findall(r"\bBAR\b", code)),
    }


def _run(*command: Any) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--more", action="store_true", help="also what takes longer to compile")
    arguments = parser.parse_args()
    work = jobs(arguments.more)
    with ProcessPoolExecutor(2) as pool:
        rows = list(pool.map(compile_job, work))
    if arguments.json:
        modules = (operator_kernels, fused_kernels)
        own = {f"{m.__name__.split('.')[-2]}.{n}" for m in modules for n in vars(m) if n.endswith("_kernel")}
        print(json.dumps({"bare": BARE, "kernels": sorted(own), "rows": rows}))
        return
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")


if __name__ == "__main__":
    main()
