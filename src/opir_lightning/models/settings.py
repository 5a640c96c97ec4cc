"""Check the network's settings before anything is built from them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from opir_lightning.errors import UserError
from opir_lightning.ops.operator_conv import Backend, Padding

TaskParameters = Literal["after", "before", "off"]
Uncertainty = Literal["learned", "tap_mean", "off"]


def read_settings(constructor: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as keyword arguments for a constructor, checked against its signature.

    Args:
        constructor: its keyword-only parameters are the schema; the annotations (as text) tell the kinds.
        settings: names and plain values: numbers, strings, booleans, lists of these.

    Returns:
        The settings as a dict.

    Raises:
        UserError: a setting is unknown, missing or of the wrong kind.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in settings:
        if name not in parameters:
            near = difflib.get_close_matches(str(name), parameters, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"Unknown model setting '{name}'.{hint} Known: {', '.join(parameters)}.")
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in settings]
    if missing:
        raise UserError(f"The model settings lack {', '.join(missing)}; the file was not written by this program.")
    for name, value in settings.items():
        kind = str(parameters[name].annotation)
        if not _is_of_kind(value, kind):
            raise UserError(f"Model setting '{name}' is {value!r}; it must be of the kind {kind}.")
    return dict(settings)


def _is_of_kind(value: Any, kind: str) -> bool:
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "bool":
        return isinstance(value, bool)
    if kind.startswith("Sequence["):
        inner = kind.removeprefix("Sequence[").removesuffix("]")
        return isinstance(value, list | tuple) and all(_is_of_kind(item, inner) for item in value)
    return isinstance(value, str)


def check_ranges(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for the first setting that is out of its range."""
    tasks, kernel_size = settings["tasks"], settings["kernel_size"]
    levels = len(settings["encoder_blocks"])
    rules: list[tuple[str, bool, str]] = [
        ("tasks", 0 < len(tasks) == len(set(tasks)), "at least one name, none twice"),
        ("width", settings["width"] >= 1, "at least 1"),
        ("features", settings["features"] >= 1, "at least 1"),
        ("unshuffle", settings["unshuffle"] in (1, 2, 4, 8), "1, 2, 4 or 8"),
        ("encoder_blocks", min(settings["encoder_blocks"], default=0) >= 0, "0 or more at each level"),
        ("decoder_blocks", min(settings["decoder_blocks"], default=0) >= 0, "0 or more at each level"),
        ("middle_blocks", settings["middle_blocks"] >= 0, "0 or more"),
        ("decoder_blocks", len(settings["decoder_blocks"]) == levels, f"{levels} numbers, like encoder_blocks"),
        ("kernel_size", kernel_size % 2 == 1 and kernel_size >= 1, "odd and positive"),
        ("dilations", bool(settings["dilations"]) and min(settings["dilations"]) >= 1, "positive numbers"),
        ("stages", settings["stages"] in (1, 2), "1 or 2"),
        ("severity_size", settings["severity_size"] >= 1, "at least 1"),
        ("code_crop", settings["code_crop"] >= 16, "at least 16 pixels"),
        ("code_crops", settings["code_crops"] >= 1, "at least 1"),
        ("code_width", settings["code_width"] >= 1, "at least 1"),
        *(
            (name, settings[name] in get_args(kind), "one of " + ", ".join(get_args(kind)))
            for name, kind in (
                ("task_parameters", TaskParameters),
                ("uncertainty", Uncertainty),
                ("padding", Padding),
                ("backend", Backend),
            )
        ),
    ]
    for name, fine, needed in rules:
        if not fine:
            raise UserError(f"model.{name} is {settings[name]!r}; it must be {needed}.")
