"""Read finished runs: trainings, evaluations and Weights & Biases' offline folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from opir_lightning.comparison.offline import read_log
from opir_lightning.comparison.scores import (
    SetKey,
    SetScores,
    curve,
    is_number,
    last_validation,
    read_json,
    read_rows,
    read_sets,
    validation_sets,
    validations,
)
from opir_lightning.comparison.settings import Flat, read_yaml, resolve, telling
from opir_lightning.errors import UserError


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        path: its folder.
        kind: what it is.
        seed: of the training; None where it is not known.
        settings: what of its configuration makes it what it is.
        config: all of it, resolved.
        choices: which file of each group of settings was chosen.
        sets: its scores.
        curve: step and PSNR of each validation.
        meta: what the run says about versions and device.
        weights: file of its weights; None where there is none any more.
        cwd: where it was started: relative paths of its configuration begin there.
        trial: folder of the search that it is part of, and its number there; None: of none.
    """

    path: Path
    kind: Literal["training", "evaluation", "Weights & Biases"]
    seed: int | None
    settings: Flat
    config: dict[str, Any]
    choices: dict[str, str]
    sets: dict[SetKey, SetScores]
    curve: list[tuple[int, float]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    cwd: Path = field(default_factory=Path)
    trial: tuple[Path, int] | None = None


class LeftOut(NamedTuple):
    """A folder that is not part of the comparison."""

    path: Path
    reason: str


def is_offline(folder: Path) -> bool:
    """Whether it is a folder that Weights & Biases leaves of a run."""
    return folder.name.startswith("offline-run-") and any(folder.glob("*.wandb"))


def read_run(folder: Path) -> Run:
    """Read one run.

    Raises:
        UserError: it is not finished, or broken; the message is its reason.
    """
    if is_offline(folder):
        return _read_offline(folder)
    if not (folder / "config" / "config.yaml").is_file():
        raise UserError("It has no config/config.yaml, so what it was is not known.")
    config = resolve(read_yaml(folder / "config" / "config.yaml") | {"run_dir": str(folder)})
    evaluation = "benchmark" in config and "checkpoint" in config
    if not (folder / "results.json").is_file():
        raise UserError("The evaluation is not finished." if evaluation else _unfinished(folder, config))
    results = read_json(folder / "results.json")
    sets = read_sets(results.get("sets"), "test" if evaluation else "validation")
    meta = results["meta"] if isinstance(results.get("meta"), dict) else {}
    if not sets:
        raise UserError("Its results.json holds no scores of any set.")
    hydra = _hydra(folder)
    if evaluation:
        return _evaluation(folder, config, sets, meta, hydra)
    weights = folder / "model.safetensors"
    return Run(
        folder,
        "training",
        _seed(config.get("seed")),
        telling(config),
        config,
        _choices(hydra),
        sets | last_validation(folder / "log" / "metrics.csv"),
        curve(validations(folder / "log" / "metrics.csv")),
        meta,
        weights if weights.is_file() else None,
        _cwd(hydra),
    )


def _unfinished(folder: Path, config: Mapping[str, Any]) -> str:
    steps = [
        int(float(row["step"])) + 1 for row in read_rows(folder / "log" / "metrics.csv") if is_number(row.get("step"))
    ]
    trainer = config.get("trainer")
    whole = trainer.get("max_steps") if isinstance(trainer, Mapping) else None
    done = f"; step {max(steps)}{f' of {whole}' if whole else ''} is the last in its log" if steps else ""
    return f"The training is not finished: it has no results.json{done}."


def _evaluation(
    folder: Path,
    config: dict[str, Any],
    sets: dict[SetKey, SetScores],
    meta: dict[str, Any],
    hydra: Mapping[str, Any],
) -> Run:
    """An evaluation, with the settings of the training that its weights come from, as far as they are known."""
    named = str(meta.get("checkpoint") or config["checkpoint"])
    about = meta["weights"] if isinstance(meta.get("weights"), dict) else {}
    path = _cwd(hydra) / named
    trained = _training_of(path, about)
    code = config.get("task_code", "blind")
    if trained is None:
        settings: Flat = {"weights": named} | {
            key: about[key] for key in ("experiment", "init", "steps", "crops") if about.get(key) not in (None, "")
        }
        choices: dict[str, str] = {}
        trained_code = "blind"
    else:
        training, choices = trained
        settings, trained_code = telling(training), training.get("task_code", "blind")
    if code != trained_code:
        settings["evaluated with task_code"] = code
    weights = _weights_file(path) or _packaged(named)
    seed = _seed(about.get("seed", trained[0].get("seed") if trained else None))
    return Run(folder, "evaluation", seed, settings, config, choices, sets, [], meta, weights, _cwd(hydra))


def _packaged(name: str) -> Path | None:
    from opir_lightning.checkpoints import available_weights, find_weights

    return find_weights(name) if name in available_weights() else None


def _weights_file(path: Path) -> Path | None:
    candidates = (path, path / "model.safetensors", path / "checkpoints" / "last.ckpt")
    return next((p for p in candidates if p.is_file() and p.suffix in (".safetensors", ".ckpt")), None)


def _training_of(path: Path, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Configuration and choices of the run that the weights lie in; None where it is gone or has become another one."""
    weights = _weights_file(path)
    if weights is None:
        return None
    folder = weights.parent.parent if weights.parent.name == "checkpoints" else weights.parent
    if not (folder / "config" / "config.yaml").is_file():
        return None
    config = resolve(read_yaml(folder / "config" / "config.yaml") | {"run_dir": str(folder)})
    if "model" not in config or ("seed" in about and about["seed"] != config.get("seed")):
        return None
    return config, _choices(_hydra(folder))


def _read_offline(folder: Path) -> Run:
    logs = sorted(folder.glob("*.wandb"))
    log = read_log(logs[0])
    if not log.finished:
        raise UserError("Its log has no end: the run is not finished, or was killed.")
    if not isinstance(log.config.get("model"), dict):
        raise UserError("Its log holds no configuration of a training of this program.")
    rows = [row for row in log.history if "val/psnr" in row]
    last: dict[str, Any] = {}
    for row in (*rows, log.summary):
        # A summary that is defined for a metric, such as its maximum, stands beside the last value.
        plain = {key: value.get("last") if isinstance(value, dict) else value for key, value in row.items()}
        last |= {key: value for key, value in plain.items() if str(key).startswith("val/") and value is not None}
    sets = validation_sets(last)
    if not sets:
        raise UserError("Its log holds no validation.")
    weights = Path(str(log.config.get("run_dir", ""))) / "model.safetensors"
    return Run(
        folder,
        "Weights & Biases",
        _seed(log.config.get("seed")),
        telling(log.config),
        log.config,
        {},
        sets,
        curve({**row, "step": row.get("trainer/global_step")} for row in rows),
        {},
        weights if weights.is_file() else None,
    )


def _hydra(folder: Path) -> dict[str, Any]:
    """What Hydra noted of the call; empty where it did not."""
    path = folder / "config" / "hydra.yaml"
    if not path.is_file():
        return {}
    node = read_yaml(path).get("hydra")
    if not isinstance(node, dict):
        return {}
    return node if isinstance(node.get("runtime"), dict) else {**node, "runtime": {}}


def _cwd(hydra: Mapping[str, Any]) -> Path:
    return Path(str(hydra.get("runtime", {}).get("cwd") or "."))


def _choices(hydra: Mapping[str, Any]) -> dict[str, str]:
    choices = hydra.get("runtime", {}).get("choices")
    if not isinstance(choices, dict):
        return {}
    return {str(group): str(name) for group, name in choices.items() if not str(group).startswith("hydra/")}


def _seed(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
