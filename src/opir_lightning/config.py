"""The root schema of the configuration, and the check that no key is mistyped, wherever it stands.

Hydra alone accepts any key in an experiment file. The root's keys are those of a dataclass; below it, the constructor
that a node names with ``_target_`` is the schema.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opir_lightning.disk import cannot_write
from opir_lightning.errors import UserError
from opir_lightning.resume import fingerprint
from opir_lightning.value_kinds import check_value


@dataclass
class TrainConfig:
    """Everything a training run is made of. The groups name what to build; see the files in conf/."""

    name: str = MISSING  # of the experiment: the run folder is outputs/<name>/<time>
    group: str = "${name}"  # of runs that belong together, such as the variants of an ablation
    tags: list[str] = field(default_factory=list)
    seed: int = 0
    tasks: list[str] = MISSING
    task_code: str = "blind"  # blind: estimate what the picture suffers from; label: it is given
    task_lr_factor: float = 2.0  # learning rate of the task parameters in units of the others'
    init: str | None = None  # weights to start from: a packaged name, a file, a run folder, OWNER/NAME on the hub
    # checkpoint to go on from, with optimizer, schedule and place in the data; auto: the last one in the run folder, if
    # there is one, and nothing at all where its results are there
    resume: str | None = None
    # a checkpoint, picture or log that cannot be written: continue: say so, go on, try the next one; stop: end with an
    # error. Either way the older checkpoints are intact. Results that cannot be written are an error
    on_full_disk: str = "continue"
    run_dir: str = MISSING
    threads: int | None = None  # of torch on the CPU; null leaves torch's choice
    compile: bool = False  # the predictor, for the training: pays on a GPU and in a long run
    cuda_graph: bool = False  # forward and backward pass recorded and replayed: where the host is slower than the GPU
    degradations: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    loss: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    schedule: dict[str, Any] = MISSING
    trainer: dict[str, Any] = MISSING
    logger: dict[str, Any] = MISSING
    callbacks: dict[str, Any] = MISSING


@dataclass
class EvaluateConfig:
    """What an evaluation needs."""

    checkpoint: str = MISSING
    degradations: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = MISSING
    benchmark: dict[str, Any] = MISSING
    sets: list[str] | None = None
    task_code: str = "blind"
    device: str = "auto"
    tile: Any = "auto"  # side of the tiles, null for one piece
    threads: int | None = None
    run_dir: str = MISSING


@dataclass
class CheckDataConfig(TrainConfig):
    """A training run and the test sets: whatever names pictures."""

    benchmark: dict[str, Any] = MISSING


@dataclass
class SearchConfig(TrainConfig):
    """A training run, and which of its settings are searched."""

    search: dict[str, Any] = MISSING


def config_dir() -> str:
    """The folder of the configuration: a wheel's copy inside the package, or the checkout's own."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise FileNotFoundError("There is no conf/ in or above the opir_lightning package; install it again.")


def register_resolvers() -> None:
    """Make known what configuration files may call: ``${joined:VALUE}`` and ``${job_folder:}``."""
    OmegaConf.register_new_resolver("joined", _joined, replace=True)
    OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)


def _joined(value: Any) -> str:
    """A value as part of a name: of a list its items with dashes between them."""
    return "-".join(map(str, value)) if isinstance(value, ListConfig) else str(value).lower()


def _job_folder(*, _root_: DictConfig) -> str:
    """Name of the folder of a sweep's job: its overrides, for people, and a fingerprint of all settings.

    The same command finds the same folders again, and other settings, wherever they were changed, have others. It has
    no character that a shell or Hydra's command line reads in its own way.
    """
    settings = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(settings, dict)
    said = []
    for override in settings.pop("hydra")["overrides"]["task"]:
        key, _, value = override.partition("=")
        if key != "experiment":
            # Of a key, and of a path, the last part.
            text = f"{key.split('.')[-1]}-{value.rstrip('/').split('/')[-1]}"
            said.append(re.sub(r"[^\w.]+", "-", text).strip("-"))
    return "__".join(["__".join(said)[:100], fingerprint({str(k): v for k, v in settings.items()})[:8]]).removeprefix(
        "__"
    )


def register_schemas() -> None:
    """Make the root schemas known to Hydra; called before anything is composed."""
    register_resolvers()
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="check_data_schema", node=CheckDataConfig)
    store.store(name="search_schema", node=SearchConfig)
    OmegaConf.register_new_resolver("setting", setting, replace=True)


# Overrides that say where, how watched, or how often a training runs, not what is trained.
_NOT_A_SETTING = re.compile(
    r"(experiment|seed|threads|compile|cuda_graph|run_dir|resume|on_full_disk|name|group|tags|trainer"
    r"|data\.(root|workers|packs|degrade_on|stalled_after|stop_stalled_after)"
    r"|trainer\.(accelerator|devices|log_every_n_steps|enable_\w+)|(logger|hydra|callbacks\.(?!ema)).*)"
)
_LONGEST_NAME = 120  # W&B takes 128 characters


def setting(name: str) -> str:
    """What the repetitions of a run have in common: its group and the overrides that change what is trained.

    The command line's ``experiment=five_task seed=3 model.kernel_size=5`` is ``five_task model.kernel_size=5``. What is
    too long for a name ends in a checksum.
    """
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = [text for text in overrides if not _NOT_A_SETTING.fullmatch(text.split("=")[0].lstrip("+~"))]
    whole = " ".join([name, *sorted(kept)])
    if len(whole) <= _LONGEST_NAME:
        return whole
    return f"{whole[: _LONGEST_NAME - 9]}~{zlib.crc32(whole.encode()):08x}"


_RESERVED = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")  # by Hydra, in every node

# What these hold are nodes, each with a `_target_`; and whether one may be left out by null.
_GROUPS_OF_NODES = {
    "degradations": True,
    "callbacks": True,
    "logger": True,
    "data.train": False,
    "data.val": False,
    "benchmark.sets": False,
    "benchmark.embedded": False,
}


def check_keys(config: DictConfig) -> dict[str, Any]:
    """Resolve a configuration and hold every node with a ``_target_`` against that constructor's signature.

    Returns:
        The configuration as plain containers.

    Raises:
        UserError: a key is mistyped, a required one is missing, a value is of a kind that its constructor cannot take,
            or an interpolation leads nowhere.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"The configuration is not complete: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    _check_node(plain, "")
    named = {str(key): value for key, value in plain.items()}
    for group in _GROUPS_OF_NODES:
        _check_group(named, group)
    return named


def _check_node(node: Any, where: str) -> None:
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check_node(item, f"{where}[{index}]")
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_target(node, where)
    for key, value in node.items():
        _check_node(value, f"{where}.{key}".removeprefix("."))


def _check_target(node: Mapping[str, Any], where: str) -> None:
    from hydra.utils import get_object

    target = str(node["_target_"])
    try:
        constructor = get_object(target)
        parameters = inspect.signature(constructor).parameters
    except Exception as error:
        raise UserError(f"{where}._target_ is '{target}', and there is no such class or function ({error}).") from error
    if not isinstance(node.get("_partial_", False), bool):
        raise UserError(f"{where}._partial_ is {node['_partial_']!r}; it must be true or false.")
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if key in _RESERVED:
            continue
        if key in parameters:
            if wrong := check_value(f"{where}.{key}", value, constructor, key):
                raise UserError(wrong)
        elif not takes_any:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" It knows: {', '.join(parameters)}."
            raise UserError(f"'{where}.{key}' is not a setting of {target}.{hint}")


def _check_group(plain: Mapping[str, Any], path: str) -> None:
    """`UserError` for an entry that is no node: a mistyped name would build nothing, or what nobody can use."""
    group: Any = plain
    for key in path.split("."):
        group = group.get(key) if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping):
        return
    known = [name for name, node in group.items() if isinstance(node, Mapping) and "_target_" in node]
    for name, node in group.items():
        if name in known or (not node and _GROUPS_OF_NODES[path]):
            continue
        if node is None:
            raise UserError(f"'{path}.{name}' is null; it must be a node with a _target_, or be left out.")
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean '{path}.{near[0]}'?" if near else f"There are {', '.join(known) or 'no others'}."
        raise UserError(f"'{path}.{name}' has no _target_, which would name its class. {hint}")


def build(node: Any, where: str, **more: Any) -> Any:
    """The object that a node of a checked configuration stands for.

    Args:
        node: with a ``_target_``.
        where: its path in the configuration.
        more: arguments beside the node's, or in their place.

    Raises:
        UserError: a constructor refuses a setting.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        inside = re.search(r"full_key: (\S+)$", str(error))
        path = f"{where}.{inside[1]}" if inside else where
        if own := user_error(error):
            # The sentences of what stands at the top name the whole path themselves.
            raise type(own)(f"{path}: {own}" if inside else str(own)) from error
        from lightning.fabric.utilities.exceptions import MisconfigurationException  # seconds, for those who need it

        cause = error.__cause__
        # By these torch, Lightning and Optuna refuse a value.
        if isinstance(cause, TypeError | ValueError | MisconfigurationException):
            raise UserError(f"'{path}' cannot be built with its settings: {first_sentence(cause)}") from error
        raise


def first_sentence(error: BaseException) -> str:
    """What a library says, without the advice that may follow in further lines."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."


def user_error(error: BaseException) -> UserError | None:
    """The `UserError` that an error is, or that it comes from: Hydra wraps what a constructor raises."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, UserError):
        found = found.__cause__
    return found


def _full_disk(error: Exception, config: DictConfig) -> str | None:
    """A sentence on a file for which there was no room; None where it is something else."""
    if not isinstance(error, OSError):
        return None
    why = cannot_write(Path(error.filename or config.get("run_dir", ".")), error)
    return why and f"{why}; make room, and give the same command again."


def _no_memory(error: BaseException) -> str | None:
    """A sentence on a lack of memory; None where it is something else."""
    from opir_lightning.memory import out_of_memory

    found: BaseException | None = error
    while found is not None and not out_of_memory(found):
        found = found.__cause__
    if found is None:
        return None
    return "There is not enough memory for this; take smaller crops, batches or tiles, or a smaller model."


def explain_user_errors(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Print a `UserError`, or a lack of disk or memory, as one sentence; leave with status 1, without a traceback."""

    @functools.wraps(task)  # Hydra names the job and its log by the file of what is wrapped, not by this one
    def explained(config: DictConfig) -> Any:
        try:
            return task(config)
        except Exception as error:
            mendable = user_error(error) or _full_disk(error, config) or _no_memory(error)
            if mendable is None:
                raise
            print(f"error: {mendable}", file=sys.stderr)
            if os.environ.get("OPIR_TRACEBACK"):
                raise
            sys.exit(1)

    return explained
