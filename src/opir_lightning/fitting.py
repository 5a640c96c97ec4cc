"""Settings and weights from a file, held against each other before memory is taken for a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from opir_lightning.errors import UserError
from opir_lightning.models import OPIR
from opir_lightning.outside import printable

LARGEST_SETTING = 4096  # depths or widths beyond it are a damaged or hostile file, and would hang the construction
LARGEST = {  # where even that would take hours or gigabytes; of lists, their sum
    "features": 256,
    "kernel_size": 63,
    "dilations": 512,
    "encoder_blocks": 256,
    "middle_blocks": 256,
    "decoder_blocks": 256,
    "severity_size": 512,
    "code_crop": 1024,
    "code_crops": 32,
}
LONGEST_LIST, LONGEST_TEXT = 256, 100  # tasks and blocks; characters of a task's name
LARGEST_NETWORK = 2**27  # weights, thirteen times those of opir_base
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_settings(where: Path | str, settings: Any) -> None:
    """Raise `UserError` unless settings are a table of plain values that are no larger than a network's can be.

    Which of them there are, and of which kind each is, `OPIR.from_settings` knows.
    """
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise UserError(f"The header of '{where}' is damaged: its settings are no table of names and values.")
    for name, value in settings.items():
        named = printable(name[:40])
        if not name.isidentifier() or len(name) > LONGEST_TEXT:
            raise UserError(f"'{where}' cannot be used: '{named}' is no name of a setting.")
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) > LONGEST_LIST or not all(isinstance(item, str | int | float) for item in items):
            raise UserError(
                f"'{where}' cannot be used: its setting '{named}' is neither a plain value nor a list of at most "
                f"{LONGEST_LIST} of them."
            )
        if any(isinstance(item, str) and not (len(item) <= LONGEST_TEXT and item.isprintable()) for item in items):
            raise UserError(
                f"'{where}' cannot be used: its setting '{named}' is longer than {LONGEST_TEXT} characters, or has "
                "some that cannot be printed."
            )
        most = LARGEST.get(name, LARGEST_SETTING)
        if not sum(abs(n) for n in items if isinstance(n, int | float)) <= most:  # so written, a NaN is refused too
            raise UserError(f"'{where}' cannot be used: its setting '{named}' adds up to more than {most}.")


def build(where: Path | str, settings: Any) -> OPIR:
    """A network from settings of a file, without its weights, in evaluation mode.

    Raises:
        UserError: the settings are not plain values in their ranges, or describe no network that can be built here;
            the message names ``where``.
    """
    check_settings(where, settings)
    expected_weights(where, anywhere(settings))
    return OPIR.from_settings(anywhere(settings)).eval()


def anywhere(settings: dict[str, Any]) -> dict[str, Any]:
    """Where the weights were trained says nothing about where they run: the fastest backend there is chosen anew."""
    return {**settings, "backend": "auto"} if "backend" in settings else settings


def expected_weights(where: Path | str, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that settings call for, without values and memory."""
    try:
        with torch.device("meta"), _WithoutValues():
            expected = OPIR.from_settings(settings).state_dict()
    except UserError as error:
        raise UserError(f"'{where}' cannot be used: {error}") from error
    except (RuntimeError, OverflowError, TypeError) as error:
        raise UserError(
            f"The settings in '{where}' describe no network that can be built ({first_line(error)})."
        ) from error
    if (count := sum(tensor.numel() for tensor in expected.values())) > LARGEST_NETWORK:
        raise UserError(
            f"'{where}' cannot be used: its network would have {count} weights, and {LARGEST_NETWORK} are allowed."
        )
    return expected


def compare_weights(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `UserError` for the first tensor that is not as the settings call for."""
    advice = "the file is damaged or belongs to another version of this program"
    for names, what in ((expected.keys() - found.keys(), "lacks"), (found.keys() - expected.keys(), "has unknown")):
        if names:
            example = printable(min(names)[:100])
            raise UserError(f"'{path}' {what} {len(names)} weights, e.g. '{example}': {advice}.")
    for name, want in expected.items():
        have = found[name]
        plain = isinstance(have, Tensor) and have.layout == torch.strided and not have.is_quantized
        if not plain or have.device.type != "cpu":
            raise UserError(f"'{path}': the weight '{name}' is no plain tensor: {advice}.")
        if have.shape != want.shape:
            shapes = f"{tuple(have.shape)} and must be {tuple(want.shape)}"
            raise UserError(f"'{path}': the weight '{name}' has the shape {shapes}: {advice}.")
        if have.dtype != want.dtype and not (have.dtype in _FLOATS and want.dtype == torch.float32):
            raise UserError(f"'{path}': the weight '{name}' is {have.dtype} and must be {want.dtype}: {advice}.")
        if not bool(have.isfinite().all()):
            raise UserError(f"'{path}': the weight '{name}' holds values that are not finite; the training diverged.")


class _WithoutValues(TorchFunctionMode):
    """Skip initialisation: meta tensors have no values, and drawing them imports the compiler (3.6 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def first_line(error: BaseException) -> str:
    """The first line of a library's message, which may have many."""
    return printable(str(error).strip().split("\n")[0].rstrip(".")[:200]) or type(error).__name__
