"""Train: ``python -m opir_lightning.train [-m] experiment=NAME [data.root=DIR] [key=value ...]``."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from opir_lightning.config import build, check_keys, config_dir, explain_user_errors, first_sentence, register_schemas
from opir_lightning.disk import cannot_write, lossy_streams, quieten_full_logs
from opir_lightning.errors import NothingFoundError, UserError
from opir_lightning.files import remove_leftovers
from opir_lightning.presets import suggest_layout
from opir_lightning.ranges import check_ranges
from opir_lightning.resume import find_progress, how_to_go_on, settings_of
from opir_lightning.sweep import alone_in, in_sweep, keep_settings, refuse_processes, run_as_job
from opir_lightning.threads import limit_spinning, use_threads

if TYPE_CHECKING:
    from lightning import Callback, Trainer

    from opir_lightning.data.datamodule import RestorationData
    from opir_lightning.training import RestorationModule

log = logging.getLogger(__name__)
register_schemas()
limit_spinning()


def train(config: DictConfig) -> Path:
    """Run one training from its configuration and report on it.

    Returns:
        The run folder with ``model.safetensors``, ``checkpoints/``, ``results.json`` and ``contact_sheet.png``.

    Raises:
        UserError: something in the configuration or the data has to be mended.
    """
    plain = check_keys(config)
    if in_sweep():
        keep_settings(plain)
    resume = plain["resume"]
    if resume == "auto":
        finished, resume, remark = find_progress(plain)
        if finished:
            log.info("Finished before: %s", plain["run_dir"])
            return Path(plain["run_dir"])
        if remark:
            log.warning("%s", remark)
        if resume:
            log.info("Going on from %s.", resume)
    elif resume is not None:
        if not Path(resume).is_file():
            raise UserError(f"There is no checkpoint '{resume}' to resume from; give the path of a .ckpt file.")
        settings_of(Path(resume))  # before anything else is loaded and built
    # Imported here, so that a mistyped key is answered before the seconds that Lightning takes to load.
    from opir_lightning.provenance import provenance
    from opir_lightning.report import report_run
    from opir_lightning.training.callbacks import close_loggers

    started = provenance()  # the code that trains, whatever is checked out at the end
    quieten_full_logs()
    module, data, trainer, run_dir = assemble(plain)
    if in_sweep():
        refuse_processes(trainer)
    if trainer.is_global_zero:
        remove_leftovers(run_dir)
    try:
        _fit(trainer, module, data, resume)
        if trainer.is_global_zero:
            report_run(module.net, data, plain, run_dir, steps=trainer.global_step, started=started)
    except OSError as error:
        if (why := cannot_write(Path(error.filename or run_dir), error)) is None:
            raise
        raise UserError(f"{why}. Make room. {how_to_go_on(run_dir)}") from error
    finally:
        close_loggers(trainer)  # last: it may wait for an upload
    return run_dir


def _fit(trainer: Trainer, module: RestorationModule, data: RestorationData, resume: str | None) -> None:
    """Train; where that is interrupted, say how to go on, and leave with a status that is not 0."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

    from opir_lightning.data.watched_loader import explain_lost_workers

    try:
        with explain_lost_workers():
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:  # what Lightning finds only now, such as a metric that is not logged
        raise UserError(f"Lightning cannot train with these settings: {first_sentence(error)}") from error
    except SystemExit as leaving:
        told = isinstance(leaving, SIGTERMException)
        if trainer.is_global_zero:
            why = "was told to end (SIGTERM)" if told else "was interrupted"
            at = f"The training {why} after step {trainer.global_step}."
            print(f"{at} {how_to_go_on(Path(trainer.default_root_dir))}", file=sys.stderr)
        # Lightning would leave with 0 then, as after a training that has reached its end.
        sys.exit(128 + signal.SIGTERM if told else leaving.code or 1)


def assemble(
    plain: dict[str, Any], callbacks: Sequence[Callback] = ()
) -> tuple[RestorationModule, RestorationData, Trainer, Path]:
    """Build everything that a resolved and checked configuration names: module, data, trainer, run folder.

    Args:
        plain: the configuration.
        callbacks: further ones.
    """
    from lightning import seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint

    from opir_lightning.checkpoints import start_from
    from opir_lightning.provenance import git_state, provenance
    from opir_lightning.training import RestorationModule
    from opir_lightning.training.callbacks import CompiledPredictor, GraphedStep
    from opir_lightning.training.checkpointing import CheckpointFiles

    check_ranges(plain)
    use_threads(plain["threads"])
    seed_everything(plain["seed"], workers=True, verbose=False)
    _check_tasks(plain)
    data = build(plain["data"], "data")
    try:
        data.prepare_sets()
    except NothingFoundError as error:
        hint = "" if data.root is None else suggest_layout(data.root, roles=["train"])
        raise UserError(f"{error} {hint}".strip()) from error
    net = build(plain["model"], "model")
    if plain["init"] is not None:
        start_from(net, plain["init"])
        log.info("Starting from the weights %s.", plain["init"])
    module = RestorationModule(
        net=net,
        loss=build(plain["loss"], "loss"),
        optimizer=build(plain["optimizer"], "optimizer"),
        schedule=build(plain["schedule"], "schedule"),
        task_lr_factor=plain["task_lr_factor"],
        task_code=plain["task_code"],
        val_sets=[val_set.name for val_set in data.val_sets],
        config=plain,
    )
    named = [build(node, f"callbacks.{name}") for name, node in plain["callbacks"].items() if node]
    if plain["compile"]:
        named.append(CompiledPredictor(batch_size=data.batch_size, crop=data.crop))
    if plain["cuda_graph"]:
        named.append(GraphedStep())
    callbacks = [*named, *callbacks]
    # Where all of them are left out, Lightning would write checkpoints as it likes.
    writes = {} if any(isinstance(c, ModelCheckpoint) for c in callbacks) else {"enable_checkpointing": False}
    further = [build(node, "trainer.plugins") for node in plain["trainer"].get("plugins") or []]
    trainer = build(
        plain["trainer"],
        "trainer",
        logger=[build(node, f"logger.{name}") for name, node in plain["logger"].items() if node],
        callbacks=callbacks,
        plugins=[*further, CheckpointFiles(plain["on_full_disk"])],
        default_root_dir=plain["run_dir"],
        **writes,
    )
    for logger in trainer.loggers:
        logger.log_hyperparams({**plain, "provenance": provenance(), "git": git_state()})
    return module, data, trainer, Path(plain["run_dir"])


def _check_tasks(plain: dict[str, Any]) -> None:
    """Every task of the run must be the task of a training source; a mistyped one would silently never be trained."""
    known = {source["task"] for source in plain["data"]["train"].values() if "task" in source}
    for task in plain["tasks"]:
        if task not in known:
            raise UserError(
                f"Unknown task '{task}': no source in data.train is of that task. Known: {', '.join(sorted(known))}."
            )


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")
@explain_user_errors
def main(config: DictConfig) -> None:
    """Entry point of the console script and of ``python -m``."""
    with lossy_streams():
        if in_sweep():
            run_as_job(train, config)
        else:
            with alone_in(Path(config.run_dir)):
                train(config)


if __name__ == "__main__":
    main()
