"""Score weights on test sets: ``python -m opir_lightning.evaluate checkpoint=FILE|NAME|OWNER/NAME data.root=DIR``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from opir_lightning.config import build, check_keys, config_dir, explain_user_errors, register_schemas
from opir_lightning.errors import UserError
from opir_lightning.presets import suggest_layout
from opir_lightning.threads import limit_spinning, use_threads

log = logging.getLogger(__name__)
register_schemas()
limit_spinning()


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Score one checkpoint on the sets that are there; print the table, write ``results.json`` in the run folder.

    Raises:
        UserError: the checkpoint or the data cannot be used.
    """

    from opir_lightning.benchmark import print_table, score_sets, write_results
    from opir_lightning.checkpoints import load_model
    from opir_lightning.inference import choose_device, exact_float32
    from opir_lightning.provenance import provenance

    plain = check_keys(config)
    if plain["task_code"] not in ("blind", "label"):
        raise UserError(f"task_code is '{plain['task_code']}'; it must be blind or label.")
    tile = plain["tile"]
    if tile not in ("auto", None) and not (type(tile) is int and tile >= 1):
        raise UserError(f"tile is '{tile}'; it must be auto, null or a number of pixels.")
    use_threads(plain["threads"])
    exact_float32()
    model, header = load_model(plain["checkpoint"])
    model.eval().to(choose_device(plain["device"]))
    sets = find_sets(plain, model.tasks)
    results = score_sets(model, sets, task_code=plain["task_code"], tile=tile)
    meta = {**provenance(), "checkpoint": str(plain["checkpoint"]), "task_code": plain["task_code"]}
    out = Path(plain["run_dir"]) / "results.json"
    write_results(out, {"sets": results, "meta": {**meta, "weights": dict(header.metadata)}})
    print_table(results, title=f"{plain['checkpoint']} ({plain['task_code']})")
    log.info("results: %s", out)
    return results


def find_sets(plain: dict[str, Any], tasks: tuple[str, ...]) -> list[Any]:
    """The sets of the benchmark that are below the data root, or those that were asked for by name.

    Raises:
        UserError: the root is missing, a named set is unknown or not there, or nothing was found.
    """
    from opir_lightning.data.evaluation import EvaluationSet
    from opir_lightning.data.store import ImageStore
    from opir_lightning.degradations.base import as_interval

    root = plain["data"].get("root")
    if unknown := set(plain["benchmark"]) - {"severity", "sets", "embedded"}:
        raise UserError(f"'benchmark.{unknown.pop()}' is not a setting; it knows severity, sets and embedded.")
    if unknown := set(plain["data"]) - {"root"}:
        raise UserError(f"'data.{unknown.pop()}' is not a setting of an evaluation; it knows data.root.")
    if root is not None and not Path(root).is_dir():
        raise UserError(f"The data folder '{root}' does not exist; set data.root to the folder with the test sets.")
    role = "sets" if root is not None else "embedded"
    group = plain["benchmark"][role]
    severity = plain["benchmark"]["severity"]
    if severity is not None:
        as_interval("benchmark.severity", severity, low=0.0, high=1.0)
    wanted = plain["sets"] or list(group)
    store = ImageStore()  # one for all: CBSD68 alone is in four sets
    sets, absent = [], []
    for name in wanted:
        if name not in group:
            raise UserError(f"There is no test set '{name}' in the benchmark; it knows {', '.join(group)}.")
        source = build(group[name], f"benchmark.{role}.{name}")
        items = source.items(None if root is None else Path(root), embedded="heldout")
        if items:
            sets.append(EvaluationSet(name, source, items, tasks=tasks, store=store, severity=severity))
        else:
            absent.append(name)
    if absent and plain["sets"]:
        raise UserError(f"The test set {absent[0]} was not found in '{root}'; leave it out of `sets` or add it there.")
    if absent:
        log.info("Not found under %s, left out: %s.", root, ", ".join(absent))
    if not sets:
        hint = "" if root is None else suggest_layout(Path(root), roles=["test"])
        raise UserError(f"None of the test sets {', '.join(group)} was found in '{root}'. {hint}".strip())
    return sets


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="evaluate")
@explain_user_errors
def main(config: DictConfig) -> None:
    """Entry point of the console script and of ``python -m``."""
    evaluate(config)


if __name__ == "__main__":
    main()
