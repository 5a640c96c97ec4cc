"""Many trainings by one command (``-m``): a job that fails does not take the rest along, and is reported at the end.

Each job has a folder that follows from its settings, so that the same command finds it again.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from opir_lightning.config import register_resolvers, user_error
from opir_lightning.errors import UserError
from opir_lightning.files import write_atomically

if TYPE_CHECKING:
    from lightning import Trainer

log = logging.getLogger(__name__)
FAILED = "failed.txt"
STARTED = ".started"
LOCK = "running.lock"
LOCK_SECONDS = 1  # the lock of a killed process goes with the last of its loader's workers
_watched: int | None = None  # the launcher that this process ends with
# A launcher's worker imports this module with the callback below, and names the folder of its job before anything else.
register_resolvers()


def in_sweep() -> bool:
    """Whether this is one of several jobs of one command."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_as_job(task: Callable[[DictConfig], Any], config: DictConfig) -> None:
    """Run one job of a sweep. What fails is written down in the job's folder, and the sweep goes on.

    Interrupts are no failures: they end the sweep.
    """
    if multiprocessing.current_process().name != "MainProcess":
        end_with(os.getppid())
    note = Path(HydraConfig.get().runtime.output_dir) / FAILED
    note.unlink(missing_ok=True)
    try:
        with alone_in(note.parent):
            task(config)
    except Exception as error:
        what = str(user_error(error) or f"{type(error).__name__}: {error}")
        note.touch()  # by it the job counts as failed, whether or not there is room for the reason
        try:
            note.write_text(f"{what}\n\n{traceback.format_exc()}")
            more = f"{note} has more; "
        except OSError:
            more = ""
        print(f"error: {what} ({more}the sweep goes on)", file=sys.stderr)
    finally:
        gc.collect()  # modules and trainers know each other: without this the next job starts beside the memory of this


def end_with(parent: int) -> None:
    """Let a launcher's worker end within a second of the launcher, even where that one was killed and could not say so.

    Otherwise it would go on with its job for hours, and the same command, given again, would find the folder taken.
    """
    global _watched
    if _watched == parent:
        return
    _watched = parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # as abruptly as the launcher: a checkpoint that is being written is not believed anyway

    threading.Thread(target=watch, name="end with the launcher", daemon=True).start()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a run folder as long as this process lives: a job that is still in Slurm's queue may start once more.

    Raises:
        UserError: another process holds it.
    """
    if any(os.environ.get(name, "0") != "0" for name in ("SLURM_PROCID", "LOCAL_RANK", "RANK", "NODE_RANK")):
        yield  # of several processes of one training the first holds it for all
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise UserError(f"Another process is training in '{folder}'.") from error
    try:
        yield
    finally:
        lock.release()


def keep_settings(plain: Mapping[str, Any]) -> None:
    """Write the resolved settings over those that Hydra keeps of a job: which variant it is has to be read off them."""
    hydra = HydraConfig.get()
    if hydra.output_subdir is not None:
        folder = Path(hydra.runtime.output_dir) / hydra.output_subdir
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(plain))).encode())


def refuse_processes(trainer: Trainer) -> None:
    """A process that Lightning starts repeats the command line, which in a sweep is all of its jobs.

    Raises:
        UserError: the trainer would start processes.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_devices * trainer.num_nodes > 1 and not getattr(environment, "creates_processes_externally", False):
        raise UserError(
            f"A job of a sweep cannot start processes, and this one wants {trainer.num_devices} devices; set "
            "trainer.devices=1, or let Slurm start them (hydra/launcher=slurm hydra.launcher.tasks_per_node=N)."
        )


class SweepReport(Callback):
    """Say at the end of a sweep which of its jobs failed, and leave with status 1 then."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        # The clock of the file system, which workers on other machines share: older notes are of another command.
        (folder / STARTED).write_text("")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        started = (folder / STARTED).stat().st_mtime
        failed = [note for note in sorted(folder.glob(f"*/{FAILED}")) if note.stat().st_mtime >= started]
        log.info("Runs of this sweep: %s", folder)
        if not failed:
            return
        print(f"error: {len(failed)} job{'s' * (len(failed) > 1)} of the sweep failed:", file=sys.stderr)
        for note in failed:
            reason = (note.read_text().splitlines() or ["the reason could not be written down"])[0]
            print(f"  {note.parent}: {reason}", file=sys.stderr)
        sys.exit(1)
