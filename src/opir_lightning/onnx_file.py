"""A traced program as an ONNX file, and ONNX Runtime to read it."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opir_lightning.errors import UserError

if TYPE_CHECKING:
    import torch

OPSET = 18  # the one that torch's translation is written for: no conversion, and ONNX Runtime from 1.14 on
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise `UserError` if a package for ONNX is not installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"Exporting to ONNX needs {', '.join(missing)}: pip install 'opir-lightning[onnx]'.")


def onnx_session(file: Path | str | bytes) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU that reports errors by exceptions alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an input that is too small would be reported twice
    return onnxruntime.InferenceSession(
        file if isinstance(file, bytes) else str(file), options, providers=["CPUExecutionProvider"]
    )


def to_onnx(
    program: torch.export.ExportedProgram,
    outputs: Sequence[str],
    decompositions: Mapping[Any, Callable[..., Any]],
    metadata: Mapping[str, Any],
) -> bytes:
    """The program as an ONNX file of standard operators.

    Args:
        program: traced, with open height and width.
        outputs: names of its results.
        decompositions: of operators that ONNX does not know, into ones that it knows.
        metadata: entries of the file's own metadata, each written as JSON.
    """
    import onnx_ir.passes.common as passes
    import torch
    from onnx_ir.passes import Sequential
    from onnxscript.optimizer import fold_constants

    # torch.onnx runs its own decompositions. Having it run ours along saves a pass over the graph, 15 of 45 seconds;
    # if one day it did not, the export would stop at a node that it does not know.
    run_theirs = program.run_decompositions
    program.run_decompositions = lambda table: run_theirs({**table, **decompositions})
    with quietly():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            output_names=outputs,
            optimize=False,
            verbose=False,
        )
    assert onnx_program is not None
    model = onnx_program.model
    # onnxscript's whole optimizer takes 13 seconds and leaves 1133 nodes, these passes take one and leave 1184.
    passes.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True)
    Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedOpsetsPass(),
    )(model)
    _name_dimensions(model)
    for node in model.graph:  # where in the Python code a node comes from: paths of the exporting machine
        node.metadata_props.clear()
        node.doc_string = None
    model.metadata_props.clear()
    model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    return onnx_program.model_proto.SerializeToString()


def _name_dimensions(model: Any) -> None:
    """Call the open dimensions height and width, and forget what the tracing called those between."""
    import onnx_ir

    outer = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outer:
                value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
        if len(value.shape) == 4:
            value.shape = onnx_ir.Shape([*value.shape[:2], "height", "width"])


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's remarks on its own code and on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)
