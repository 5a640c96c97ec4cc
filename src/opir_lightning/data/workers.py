"""How the loader's processes end."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
GRACE_SECONDS = 60


def begin_worker(_: int) -> None:
    """Let a worker end with its training, and not before; for ``worker_init_fn`` of a loader.

    A batch system tells all processes of a job to end (SIGTERM). A worker that did so at once would take the training
    along in the middle of a step, before it can write a checkpoint. And a training that is killed (SIGKILL) cannot
    tell anybody: torch's workers look for it every five seconds, between two batches, and hold its files until then.
    """
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():  # it died before that was arranged
            os._exit(1)
