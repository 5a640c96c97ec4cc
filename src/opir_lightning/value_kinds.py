"""Which values a parameter takes, as far as its annotation says so for certain."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

# What they are called: the alternatives of one value, and several of them.
_NAMES: dict[Any, tuple[list[str], str]] = {
    int: (["a whole number"], "whole numbers"),
    float: (["a number"], "numbers"),
    bool: (["true", "false"], "true or false"),
    str: (["text"], "texts"),
    Path: (["text"], "texts"),
    NoneType: (["null"], "null"),
}
# Classes that torch allows for a learning rate, and Lightning for a time.
_BUILT = {("torch", "Tensor"), ("datetime", "timedelta")}
_LISTS, _MAPPINGS = (list, tuple, Sequence), (dict, Mapping)


class _Misfit(NamedTuple):
    """A value of a setting, or of a part of it, and what it ought to be."""

    name: str
    value: Any
    kind: Any


def check_value(name: str, value: Any, constructor: Callable[..., Any], parameter: str) -> str | None:
    """A sentence on a value of a configuration that a parameter cannot take; None where it may.

    Of a constructor of this package the annotation is taken by its word. Others do with more than theirs say: with a
    whole number that is written as 1e5, with 1 for true.

    Args:
        name: of the setting.
        value: numbers, words, lists and mappings of them, as a configuration has them; a mapping with a ``_target_``
            becomes an object, and passes.
        constructor: a class or function.
        parameter: its name.
    """
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    try:
        kind = _hints(function).get(parameter, Any)
    except Exception:  # somebody else's annotation that only type checkers can read
        return None
    found = _misfit(name, value, kind, str(getattr(function, "__module__", "")).startswith("opir_lightning"))
    return found and f"{found.name} is {_shown(found.value)}; it must be {_or(_described(found.kind))}."


@functools.cache  # a sweep checks hundreds of configurations of the same constructors
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function)


def _misfit(name: str, value: Any, kind: Any, exact: bool) -> _Misfit | None:
    """The first part that is for certain not of its kind, or the whole."""
    if isinstance(value, Mapping) and "_target_" in value:
        return None
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        found = [_misfit(name, value, one, exact) for one in inner]
        if None in found:
            return None
        deeper = [misfit for misfit in found if misfit and misfit.name != name]
        return deeper[0] if deeper else _Misfit(name, value, kind)
    if origin in _LISTS and isinstance(value, list):
        kinds = inner if origin is tuple and Ellipsis not in inner else inner[:1] * len(value)
        parts = [(f"{name}[{place}]", item) for place, item in enumerate(value)]
        if len(kinds) != len(parts):
            return _Misfit(name, value, kind)
    elif origin in _MAPPINGS and isinstance(value, Mapping):
        if not exact:  # Lightning's times may have halves, whatever its annotation says
            return None
        parts, kinds = [(f"{name}.{key}", item) for key, item in value.items()], inner[1:] * len(value)
    else:
        return None if _fits(value, kind, exact) else _Misfit(name, value, kind)
    misfits = (_misfit(*part, one, exact) for part, one in zip(parts, kinds, strict=True))
    return next(filter(None, misfits), None)


def _fits(value: Any, kind: Any, exact: bool) -> bool:
    """Whether a value may be of a kind that has no parts; true where that is not certain."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_number = is_number and not (isinstance(value, float) and math.isnan(value))
    if get_origin(kind) is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(kind))
    if kind is NoneType:
        return value is None
    if kind is bool:
        return isinstance(value, bool) or (not exact and value in (0, 1))
    if kind is int:
        return is_number and (isinstance(value, int) or (not exact and value.is_integer()))
    if kind is float:
        return is_number
    if kind in (str, Path):
        return isinstance(value, str)
    return get_origin(kind) not in (*_LISTS, *_MAPPINGS) and not _is_built(kind)


def _is_built(kind: Any) -> bool:
    """Whether this is a class that no plain value stands for."""
    is_class = inspect.isclass(kind) and not getattr(kind, "_is_protocol", False)
    return (is_class and kind.__module__.startswith("opir_lightning")) or _place(kind) in _BUILT


def _place(kind: Any) -> tuple[str, str]:
    return str(getattr(kind, "__module__", "")), str(getattr(kind, "__qualname__", ""))


def _described(kind: Any, *, several: bool = False) -> list[str]:
    """The alternatives."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _NAMES:
        return [_NAMES[kind][1]] if several else _NAMES[kind][0]
    if origin in (Union, UnionType):
        # What a number or text stands for as well is left out.
        wanted = [one for one in inner if not (one is int and float in inner) and _place(one) not in _BUILT]
        return [word for one in wanted for word in _described(one, several=several)]
    if origin is Literal:
        return [str(one) for one in inner]
    if origin in _LISTS:
        how_many = f"{len(inner)} " if origin is tuple and Ellipsis not in inner else ""
        return [f"{'lists' if several else 'a list'} of {how_many}{_or(_described(inner[0], several=True))}"]
    if origin in _MAPPINGS:
        return [f"{'mappings' if several else 'a mapping'} of names to {_or(_described(inner[1], several=True))}"]
    return ["nodes with a _target_" if several else "a node with a _target_"]


def _or(words: Iterable[str]) -> str:
    *first, last = dict.fromkeys(words)
    return f"{', '.join(first)} or {last}" if first else last


def _shown(value: Any) -> str:
    """As it stands in a configuration."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)
