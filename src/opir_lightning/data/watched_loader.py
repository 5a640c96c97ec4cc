"""A loader that says so when its batches do not come, and what its workers do meanwhile."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psutil
from torch.utils.data import DataLoader

from opir_lightning.errors import UserError

log = logging.getLogger(__name__)
Item = TypeVar("Item")
LOOK = 1.0  # seconds over which the workers' use of the CPU is measured
BUSY = 0.5  # of one CPU, from which on a worker computes
WAITING = {psutil.STATUS_DISK_SLEEP: "disk", psutil.STATUS_STOPPED: "stopped"}
RESUME = "Go on with resume=RUN/checkpoints/last.ckpt"


class WatchedLoader(DataLoader[Item]):
    """A `DataLoader` that counts the seconds waited for it, and reports a batch that does not come.

    Args:
        patience: seconds without a batch after which that is reported, with the state of the workers; again after
            twice, four times, ... as long. None: never.
        limit: seconds without a batch after which the waiting ends, where there are workers; None: never.
        **loader: as of `DataLoader`.

    Raises:
        UserError: a worker is gone, or a batch has not come within the limit. See `explain_lost_workers`.
    """

    def __init__(self, *args: Any, patience: float | None = None, limit: float | None = None, **loader: Any) -> None:
        # torch's own limit does not hold while it fetches what a worker has announced: there it waits for this worker.
        loader["timeout"] = limit if limit and loader.get("num_workers") else 0
        super().__init__(*args, **loader)
        self.patience, self.limit = patience, limit
        self.waited = 0.0

    def __iter__(self) -> Any:
        started = time.monotonic()
        batches = super().__iter__()
        self.waited += time.monotonic() - started
        return _Batches(self, batches)


class _Wait:
    """What the watching thread knows: not the iterator, which has to end its workers as soon as nobody needs it."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self.workers = workers
        self.since: float | None = None  # when the main thread began to wait, while it does
        self.over = threading.Event()
        self.given_up = False


class _Batches(Iterator[Item]):
    def __init__(self, loader: WatchedLoader[Item], batches: Iterator[Item]) -> None:
        self.loader, self.batches = loader, batches
        self.wait = _Wait(list(getattr(batches, "_workers", [])))
        weakref.finalize(self, self.wait.over.set)
        if loader.patience is not None or loader.limit is not None:
            limits = (loader.patience or math.inf, loader.limit or math.inf)
            threading.Thread(target=_watch, args=(self.wait, *limits), name="loader watch", daemon=True).start()

    def __len__(self) -> int:
        return len(self.loader)

    def __next__(self) -> Item:
        started = self.wait.since = time.monotonic()
        try:
            return next(self.batches)
        except StopIteration:
            self.wait.over.set()
            raise
        except (RuntimeError, OSError, EOFError) as error:
            timed_out = self.wait.given_up or "DataLoader timed out" in str(error)
            lost = _given_up(time.monotonic() - started) if timed_out else _lost(str(error))
            if lost is None:
                raise
            _end(self.wait.workers)
            raise UserError(lost) from error
        finally:
            self.wait.since = None
            passed = time.monotonic() - started
            self.loader.waited += passed
            if self.loader.patience is not None and passed >= self.loader.patience:
                log.warning("The wait for the loader is over, after %.0f s.", passed)


def _end(workers: Sequence[Any]) -> None:
    """Kill them: one that is stopped, or waits for a disk, would keep this process from ending."""
    for worker in workers:
        with suppress(RuntimeError):  # by which torch reports the first that dies
            worker.kill()
            worker.join(1)


def _watch(wait: _Wait, patience: float, limit: float) -> None:
    began, due = None, patience
    while not wait.over.wait(min(patience / 4, limit / 4, 1.0)):
        since = wait.since
        if since != began:
            began, due = since, patience
        if since is None:
            continue
        if time.monotonic() - since >= limit and wait.workers:
            wait.given_up = True
            for worker in wait.workers:
                worker.kill()  # whatever the main thread is waiting in, it ends by that
            return
        if time.monotonic() - since >= due:
            due *= 2
            workers = _look(wait.workers)
            if wait.since == since:  # or the batch has come meanwhile
                log.warning("%s", _report(time.monotonic() - since, workers))


def _look(workers: Sequence[Any]) -> list[tuple[str, str]]:
    """Of each worker a word for what it does, and a sentence."""
    watched = {}
    for worker in workers:
        try:
            watched[worker.pid] = psutil.Process(worker.pid)
            watched[worker.pid].cpu_percent()
        except (psutil.Error, ValueError):
            watched.pop(worker.pid, None)
    time.sleep(LOOK)
    found = []
    for worker in workers:
        try:
            process = watched[worker.pid]
            if process.status() == psutil.STATUS_ZOMBIE:
                raise psutil.NoSuchProcess(worker.pid)
            share, state = process.cpu_percent() / 100, process.status()
            memory = process.memory_info().rss / 2**30
        except (KeyError, psutil.Error):
            found.append(("dead", f"worker {worker.pid} is dead"))
            continue
        word = "busy" if share >= BUSY else WAITING.get(state, "idle")
        found.append((word, f"worker {worker.pid} lives ({state}, {share:.0%} of a CPU, {memory:.1f} GiB)"))
    return found


ADVICE = {
    "dead": "A worker that is dead was most likely ended for want of memory: try a smaller data.workers.",
    "stopped": "A stopped worker goes on with `kill -CONT PID`.",
    "disk": "Workers wait for the disk: copy data.root to a local one, or put data.packs there.",
    "busy": "Workers are computing: try a larger data.workers, a smaller data.crop or data.batch_size.",
    "idle": "Workers that live and do nothing wait for something: `py-spy dump --pid PID` shows what for.",
}
"""What to try, by what a worker does; the first that fits one is said."""


def _report(seconds: float, workers: list[tuple[str, str]]) -> str:
    said = f"No batch has come from the loader for {seconds:.0f} s; "
    if not workers:
        return said + (
            "it has no workers (data.workers=0), so this process itself is reading or computing samples: look whether "
            "the disk of data.root answers, or try data.workers=2. The training goes on waiting."
        )
    words = {word for word, _ in workers}
    advice = next(text for word, text in ADVICE.items() if word in words)
    return f"{said}{'; '.join(text for _, text in workers)}. {advice} The training goes on waiting."


@contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Say in one sentence that a worker was killed: torch says so by a signal, which may interrupt anything.

    Raises:
        UserError: a worker was killed or has ended.
    """
    try:
        yield
    except RuntimeError as error:
        lost = _lost(str(error))
        if lost is None:
            raise
        raise UserError(lost) from error


def _given_up(seconds: float) -> str:
    return (
        f"No batch has come from the loader for {seconds:.0f} s (data.stop_stalled_after), so the training was "
        f"stopped. {RESUME}, once the disk of data.root answers again."
    )


def _lost(message: str) -> str | None:
    if found := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", message):
        how = re.search(r"killed by signal: (.+?)\.", message)
        name = "ended" if how is None else f"was killed ({how[1]})"
        shared = how is not None and how[1].startswith("Bus")
        why = (
            "the shared memory is full: enlarge /dev/shm (of a container --shm-size), or try data.workers=0"
            if shared
            else "most often the system does so for want of memory: try a smaller data.workers"
        )
        return f"The loader's worker {found[1]} {name}; {why}. {RESUME}."
    return None
