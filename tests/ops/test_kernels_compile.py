"""Without a GPU: the kernels compile for sm_90, and importing the operator does not import triton.

Both need a process of their own: under Triton's interpreter, which the other tests use, nothing can be compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the package 'triton' is not installed")

SCRIPT = r"""
import json, sys
import opir_lightning.ops.operator_conv
report = {"triton imported": "triton" in sys.modules}

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from opir_lightning.ops.operator_conv import kernels, launch

def compile(kernel, pointers, one=(), **constants):
    constants |= {"BLOCK": launch.BLOCK}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    constants |= {name: 1 for name in one}  # what a launch makes of a size of 1
    signature = dict(zip(kernel.arg_names, pointers)) | {name: "i32" for name in ("C", "H", "W")}
    signature |= {name: "constexpr" for name in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants,
                       attrs={(i,): [["tt.divisibility", 16]] for i in range(3)})
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32),
                          options={"num_warps": launch.WARPS, "enable_fp_fusion": True})
    return ".target sm_90" in done.asm["ptx"] and done.asm["cubin"][:4] == b"\x7fELF"

f, h = "*fp32", "*bf16"
model = dict(K=3, DILATIONS=(1, 2, 3, 4), PADDING=2, MARGIN=4, SHARED=False, CH=3)
shared = dict(K=5, DILATIONS=(1,), PADDING=0, MARGIN=0, SHARED=True, CH=1)
mirror = dict(K=7, DILATIONS=(1, 2), PADDING=3, MARGIN=6, SHARED=False, CH=1)
report["compiled"] = {}
for name, taps in (("forward_kernel", 1), ("image_gradient_kernel", 1), ("taps_gradient_kernel", 2)):
    halves = [h if i == taps else f for i in range(3)]
    kernel = getattr(kernels, name)
    report["compiled"][name] = [
        compile(kernel, halves, **model),
        compile(kernel, [f, f, f], **shared),
        compile(kernel, [f, f, f], one=("C", "H", "W"), **mirror),
        compile(kernel, [h, h, h], **(model | {"PADDING": 1, "SHARED": True})),
    ]
report["kernels"] = sorted(n for n in vars(kernels) if n.endswith("_kernel"))
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))  # empty: compile, do not look up
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_importing_the_operator_does_not_import_triton(report):
    assert report["triton imported"] is False


def test_every_kernel_compiles_for_sm_90(report):
    assert sorted(report["compiled"]) == report["kernels"]
    assert all(all(variants) for variants in report["compiled"].values()), report["compiled"]
