"""The settings of a run as plain values: references filled in, flattened, and what of them tells runs apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from opir_lightning.errors import UserError
from opir_lightning.outside import check_plain, read_text

Flat = dict[str, Any]
"""Settings by their dotted name; lists stay whole."""

# What does not change what is learnt or scored: where things go, how they are shown, how fast they come.
_IGNORED = re.compile(
    r"_wandb|run_dir|seed|resume|on_full_disk|tags|group|threads|compile|cuda_graph|device|tile|checkpoint"
    r"|(logger|hydra|search|provenance|git)(\..*)?"
    r"|data\.(seed|workers|packs|degrade_on|stalled_after|stop_stalled_after)"
    r"|callbacks\.finite\.(folder|keep)"
    r"|callbacks\.(panels|operators|confusion|calibration|progress|best|last|health|rising)\b.*"
    r"|trainer\.(enable_.*|log_every_n_steps|default_root_dir|logger|callbacks|accelerator)"
    r"|(.*\.)?_(target|convert|partial|recursive)_"
)
_TARGETS = re.compile(r"(.*\.)?_target_")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.\-]*)\}")  # resolvers, ${env:...}, are none: they could tell secrets
_DEEPEST = 20  # references to references, before it must be a circle
_LONGEST = 72  # characters of a group's name
_LARGEST_YAML, _LONGEST_NUMBER = 2**18, 40  # bytes (a configuration has some 10 KB), characters
_MOST_RESOLVED = 10**6  # characters, once all references are filled in


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; only plain values can come from it.

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        # The loader only adds refusals to those of PyYAML's safe one.
        content = yaml.load(read_text(path, most=_LARGEST_YAML), Loader=_PlainLoader)
        check_plain(content)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read as YAML ({type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds no settings.")
    return content


class _PlainLoader(yaml.SafeLoader):
    """What programs write: short numbers, and no tables that are merged, which double with every line."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it merges tables")
        super().flatten_mapping(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return super().construct_yaml_int(_short(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return super().construct_yaml_float(_short(node))

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> str:
        return str(node.value)  # as Hydra reads it


def _short(node: yaml.ScalarNode) -> yaml.ScalarNode:
    if len(node.value) > _LONGEST_NUMBER:
        raise yaml.YAMLError("a number has too many digits")
    return node


for _kind in ("int", "float", "timestamp"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", getattr(_PlainLoader, f"construct_yaml_{_kind}"))


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in references to other settings, ``${data.crop}``; what else stands in ``${...}`` stays as it is written.

    Raises:
        UserError: references go round in a circle, or unfold without end.
    """
    resolver = _Resolver(config)
    return {str(key): resolver.resolved(value, 0) for key, value in config.items()}


class _Resolver:
    """Fills in the references of one configuration, and counts what comes of it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config, self.room = config, _MOST_RESOLVED

    def resolved(self, value: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise UserError("Its settings refer to each other in a circle.")
        self.room -= 1 + (len(value) if isinstance(value, str) else 0)
        if self.room < 0:
            raise UserError("Its settings refer to each other until they fill the memory.")
        if isinstance(value, Mapping):
            return {str(key): self.resolved(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolved(item, depth) for item in value]
        if not isinstance(value, str):
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            found, target = _look_up(whole[1], self.config)
            return self.resolved(target, depth + 1) if found else value

        def inside(match: re.Match[str]) -> str:
            found, target = _look_up(match[1], self.config)
            return str(self.resolved(target, depth + 1)) if found else match[0]

        return _REFERENCE.sub(inside, value)


def _look_up(name: str, config: Mapping[str, Any]) -> tuple[bool, Any]:
    node: Any = config
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node


def flatten(config: Mapping[str, Any], where: str = "") -> Flat:
    """Settings by dotted name, in their order; an empty mapping is a value."""
    flat: Flat = {}
    for key, value in config.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def telling(config: Mapping[str, Any]) -> Flat:
    """What of a resolved configuration makes a run what it is: no seed, no folders, nothing of the display.

    The degradations that no source uses are left out with the group ``degradations``: those that are used stand, filled
    in, at their sources.
    """
    flat = flatten({key: value for key, value in config.items() if key != "degradations" or "data" not in config})
    return {
        name: value
        for name, value in flat.items()
        if not _IGNORED.fullmatch(name) or (_TARGETS.fullmatch(name) and not name.startswith(("logger", "callbacks")))
    }


def shown(value: Any) -> str:
    """A value as one would type it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def differing(groups: Sequence[Flat]) -> dict[str, list[str | None]]:
    """Settings in which groups differ: their values, None where a group has no such setting."""
    names = dict.fromkeys(name for flat in groups for name in flat)
    rows = {name: [shown(flat[name]) if name in flat else None for flat in groups] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def name_groups(groups: Sequence[Flat], choices: Sequence[Mapping[str, str]]) -> list[str]:
    """A short name for each group, from what sets it apart.

    Args:
        groups: settings of each.
        choices: of each, which file of a group of settings was chosen (``{"model": "opir_tiny"}``); may be empty. Where
            such a choice explains a difference, it stands for it.

    Returns:
        As many names, all different.
    """
    if len(groups) == 1:
        return [str(groups[0].get("name", "all runs"))]
    rows = _explained(differing(groups), choices)
    names = rows.get("name")
    if names and None not in names and len(set(names)) == len(names):
        return [str(name) for name in names]
    unique: dict[tuple[str | None, ...], str] = {}  # settings that vary together are told once
    for setting, values in rows.items():
        unique.setdefault(tuple(values), setting)
    unique.pop(tuple(names or ()), None) if len(unique) > 1 else None
    short = _short_names(list(unique.values()))
    labels = []
    for index in range(len(groups)):
        parts = [f"{short[s]}={values[index]}" for values, s in unique.items() if values[index] is not None]
        labels.append(", ".join(parts) or "default")
    if len(set(labels)) == len(labels) and max(map(len, labels)) <= _LONGEST:
        return labels
    cut = [label if len(label) <= _LONGEST else label[: _LONGEST - 1].rstrip(", ") + "…" for label in labels]
    return [f"{number}: {label}" for number, label in enumerate(cut, 1)]


def _explained(
    rows: Mapping[str, list[str | None]], choices: Sequence[Mapping[str, str]]
) -> dict[str, list[str | None]]:
    """The rows, those below a choice that determines them replaced by the choice."""
    kept: dict[str, list[str | None]] = {}
    for setting, values in rows.items():
        group = setting.partition(".")[0]
        chosen = [choice.get(group) for choice in choices]
        determines = len(set(zip(chosen, values, strict=True))) == len(set(chosen)) if choices else False
        if "." in setting and None not in chosen and len(set(chosen)) > 1 and determines:
            kept.setdefault(group, list(chosen))
        else:
            kept[setting] = values
    return kept


def _short_names(settings: Sequence[str]) -> dict[str, str]:
    """The last part of each name, with as many before it as it takes to tell them apart."""
    short = {}
    for setting in settings:
        parts = setting.split(".")
        for count in range(1, len(parts) + 1):
            end = ".".join(parts[-count:])
            if sum(other == end or other.endswith(f".{end}") for other in settings) == 1:
                break
        short[setting] = end
    return short
