"""Export a model for use without this package: ``python -m opir_lightning.export --weights NAME|FILE -o FILE``.

The whole model is exported, the estimate of the degradation included: picture in, restoration out, height and width
open. Neither torch nor the network is imported before the arguments are read, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opir_lightning.errors import UserError
from opir_lightning.files import write_atomically
from opir_lightning.onnx_file import check_packages, onnx_session, quietly, to_onnx
from opir_lightning.threads import limit_spinning

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from opir_lightning.models import OPIR

INPUT = "image"
OUTPUTS = ("coarse", "uncertainty", "refined", "task_logits")
TOLERANCE = 1e-4  # most that PyTorch's result may differ by, see `deviation`; a tenth of an 8-bit level is 4e-4
EXTRA_FILE = "opir_lightning.json"  # where a torch program keeps its metadata

EPILOG = """\
onnx   one file of standard operators, for ONNX Runtime and others
torch  a torch.export program (.pt2) with the operator as one node; load it after `import opir_lightning.models`,
       which registers that node
Input:  image (1, 3, height, width) float32 RGB in [0, 1], both sides at least those of the crops the degradation is
        estimated from (see "smallest_side" in the file's metadata).
Output: coarse, uncertainty, refined, task_logits; not clamped.
Exit status: 0 written and equal to PyTorch, 1 not written, 2 wrong usage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (wrong usage leaves by ``SystemExit(2)``, as argparse does)."""
    args = _parser().parse_args(argv)
    limit_spinning()
    try:
        _run(args.weights, args.format, args.output)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m opir_lightning.export",
        description="Export a model for pictures of any size, and compare what was exported with PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        metavar="NAME|FILE|OWNER/NAME",
        help="packaged weights, a .safetensors or .ckpt, a run folder, or a model on the Hugging Face Hub",
    )
    add("--format", choices=("onnx", "torch"), default="onnx", help="see below (default: onnx)")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write; an existing one is replaced")
    return parser


def _run(weights: str, kind: str, path: Path) -> None:
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; -o needs the name of the file to write.")
    if kind == "onnx":
        check_packages()  # before the weights are read
    from opir_lightning.checkpoints import find_weights, load_model

    if path.exists() and path.samefile(find_weights(weights)):
        raise UserError(f"The export would overwrite the weights '{path}'; choose another name with -o.")
    model, _ = load_model(weights)
    print("exporting; about half a minute for the smallest variant", file=sys.stderr)
    difference = (export_onnx if kind == "onnx" else export_torch)(model, path)
    side = smallest_side(model)
    print(f"{path}: differs from PyTorch by at most {difference:.1e}; takes pictures from {side}x{side} pixels")


def smallest_side(model: OPIR) -> int:
    """Shortest height and width in pixels that an exported model takes.

    Below the side of the code's crops, a crop would have another size and so another graph; and torch's tracing tells
    one cell at the coarsest level from several.
    """
    return max(model.code_crop, model.stride + 1)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Every registered operator in standard operations, for ``ExportedProgram.run_decompositions``."""
    from opir_lightning.ops.operator_conv import decomposition as operator_conv
    from opir_lightning.ops.predict_and_apply import decomposition as predict_and_apply

    return {**operator_conv.decomposition_table(), **predict_and_apply.decomposition_table()}


def export_program(model: OPIR) -> torch.export.ExportedProgram:
    """Trace the model with open height and width; the registered operators stay single nodes.

    Args:
        model: any OPIR on any device; a copy on the CPU in evaluation mode is traced, with the backend that is the
            fastest there.

    Returns:
        A program from ``image`` ``(1, 3, H, W)`` float32, H and W at least `smallest_side`, to a dict with the names
        of `OUTPUTS`, shapes as in `opir_lightning.types.Restoration`.
    """
    import torch

    class Named(torch.nn.Module):
        def __init__(self, model: OPIR) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            restored = self.model(image)
            if restored.refined is restored.coarse:  # of one stage: two names need two results
                restored = restored._replace(refined=restored.refined.clone())
            return restored._asdict()

    open_length = torch.export.Dim.DYNAMIC(min=smallest_side(model))
    example = torch.zeros(1, 3, *_sizes(model)[1])
    with torch.no_grad(), quietly():
        return torch.export.export(
            Named(_on_cpu(model)), (example,), dynamic_shapes={INPUT: {2: open_length, 3: open_length}}, strict=False
        )


def export_torch(model: OPIR, path: Path | str) -> float:
    """Write a ``torch.export`` program; `torch.export.load` reads it once the operator is registered.

    Args:
        model: as in `export_program`.
        path: file to write, usually ``.pt2``. What is written has passed the comparison; before, nothing is replaced.

    Returns:
        The largest absolute difference from the model, over all outputs and two sizes.

    Raises:
        UserError: the program differs from the model by more than `TOLERANCE`.
    """
    import torch

    buffer = io.BytesIO()
    with quietly():
        torch.export.save(export_program(model), buffer, extra_files={EXTRA_FILE: json.dumps(_metadata(model))})
        loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()

    def run(image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return loaded(image)

    difference = _compare(model, run)
    write_atomically(Path(path), buffer.getvalue())
    return difference


def export_onnx(model: OPIR, path: Path | str) -> float:
    """Write an ONNX file of standard operators with open height and width.

    Its metadata hold the entries of `_metadata`: settings, smallest side, tolerance and the like, each as JSON.

    Args:
        model: as in `export_program`.
        path: file to write. What is written has passed the comparison; before, nothing is replaced.

    Returns:
        The largest absolute difference of ONNX Runtime on the CPU from the model, over all outputs and two sizes.

    Raises:
        UserError: a package for ONNX is missing, or the file differs from the model by more than `TOLERANCE`.
    """
    check_packages()
    import torch

    data = to_onnx(export_program(model), OUTPUTS, decompositions(), _metadata(model))
    session = onnx_session(data)

    def run(image: Tensor) -> dict[str, Tensor]:
        values = session.run(OUTPUTS, {INPUT: image.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(OUTPUTS, values, strict=True)}

    difference = _compare(model, run)
    write_atomically(Path(path), data)
    return difference


def _metadata(model: OPIR) -> dict[str, Any]:
    from opir_lightning import __version__

    return {
        "opir_lightning": __version__,
        "settings": model.settings,
        "tasks": list(model.tasks),
        "smallest_side": smallest_side(model),
        "tolerance": TOLERANCE,
    }


def _compare(model: OPIR, exported: Callable[[Tensor], dict[str, Tensor]]) -> float:
    """Largest absolute difference; `UserError` where it is beyond the tolerance, or no number."""
    import torch

    reference, largest = _on_cpu(model), 0.0
    generator = torch.Generator().manual_seed(0)
    for size in _sizes(model):
        image = torch.rand(1, 3, *size, generator=generator)
        with torch.no_grad():
            wanted = reference(image)._asdict()
        got = exported(image)
        for name in OUTPUTS:
            difference = deviation(name, got[name], wanted[name])
            if not difference <= TOLERANCE:  # so written, a NaN is refused too
                raise UserError(
                    f"The export was not written: at {size[0]}x{size[1]} pixels its output '{name}' differs from "
                    f"PyTorch by {difference:.1e}, and {TOLERANCE:.0e} is allowed."
                )
            largest = max(largest, difference)
    return largest


def deviation(name: str, got: Any, wanted: Any) -> float:
    """How far an output is from what it should be, in the units of `TOLERANCE`; NaN where one of its numbers is.

    Of the pictures and of the map it is the largest absolute difference. The logits are sums over up to sixteen crops
    and reach hundreds, where float32 itself is coarser than the tolerance: theirs is a share of the largest of them,
    where that is above one.

    Args:
        name: one of `OUTPUTS`.
        got, wanted: arrays or tensors.
    """
    largest = float(abs(got - wanted).max())
    return largest / max(1.0, float(abs(wanted).max())) if name == "task_logits" else largest


def _sizes(model: OPIR) -> list[tuple[int, int]]:
    """Two sizes: the smallest, and one with several crops whose sides are no multiples of the stride."""
    side = smallest_side(model)
    return [(side, side), (2 * side + 3, 3 * side + 5)]


def _on_cpu(model: OPIR) -> OPIR:
    copied = copy.deepcopy(model).cpu().eval()
    copied.backend = "auto"
    return copied


if __name__ == "__main__":
    sys.exit(main())
