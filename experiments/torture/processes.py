"""A training in a process of its own: started from nothing, or forked from one that has the libraries loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from typing import Protocol


class Process(Protocol):
    """What is needed of a process: that of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


class Forked:
    """The training in a process forked from this one, which has the libraries loaded."""

    def __init__(self, arguments: list[str], log: int) -> None:
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.dup2(log, 1)
                os.dup2(log, 2)
                sys.argv = ["train", *arguments]
                from opir_lightning.train import main

                main()
                status = 0
            except SystemExit as leaving:
                status = leaving.code if isinstance(leaving.code, int) else 1
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        if self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (timeout or float("inf"))
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("train", timeout or 0)
            time.sleep(0.002)
        return status

    def send_signal(self, sig: int) -> None:
        os.kill(self.pid, sig)
