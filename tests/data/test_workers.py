"""A loader's process ends with its training, and not before."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys

import pytest

from opir_lightning.data.workers import begin_worker


def work(talk: int) -> None:
    begin_worker(0)
    os.set_blocking(talk, False)
    signal.set_wakeup_fd(talk)  # says which signals are handled
    os.write(talk, os.getpid().to_bytes(8, "little"))
    while True:
        signal.pause()


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells processes of their parent's death on Linux alone")
def test_a_worker_outlives_a_request_to_end_but_not_its_training():
    listen, talk = os.pipe()
    training = os.fork()
    if training == 0:
        multiprocessing.get_context("fork").Process(target=work, args=(talk,)).start()
        os.close(talk)
        while True:
            signal.pause()
    os.close(talk)
    worker = int.from_bytes(os.read(listen, 8), "little")
    os.kill(worker, signal.SIGTERM)
    handled = os.read(listen, 1)
    os.kill(training, signal.SIGKILL)
    os.waitpid(training, 0)
    ended, _, _ = select.select([listen], [], [], 20)
    if not ended:
        os.kill(worker, signal.SIGKILL)
    os.set_blocking(listen, False)
    assert handled == bytes([signal.SIGTERM])
    assert ended
    assert os.read(listen, 1) == b""  # nobody is left who could write
    os.close(listen)
