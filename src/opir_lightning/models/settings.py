"""Check settings that come from a file before anything is built from them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from opir_lightning.errors import UserError


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
