"""What a training says about itself: its health, a loader that stalls or dies, a loss that rises."""

from __future__ import annotations

import csv
import logging
import math
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from lightning import Callback
from short_runs import SHORT, prepared

from opir_lightning import train
from opir_lightning.data import Curriculum, watched_loader
from opir_lightning.errors import UserError
from opir_lightning.training.callbacks import RisingLoss
from opir_lightning.training.callbacks.health import memory_used
from opir_lightning.training.callbacks.rising import LossTrend, _in_curriculum
from opir_lightning.training.module import Trained

FAST = [
    "trainer.max_steps=5",
    "data.epoch_samples=6",
    "data.packs=memory",
    "trainer.limit_val_batches=0",
    "callbacks.best=null",
    "callbacks.last=null",
    "callbacks.panels=null",
    "callbacks.operators=null",
    "callbacks.confusion=null",
    "callbacks.calibration=null",
]


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_health_is_logged_with_the_losses(tmp_path, small_root):
    class Measure(Callback):
        """The gradient's norm before anybody has clipped, and the rate that the step is taken with."""

        norms: list[float] = []  # noqa: RUF012
        rates: list[float] = []  # noqa: RUF012

        def on_after_backward(self, trainer, pl_module):
            flat = torch.cat([parameter.grad.flatten() for parameter in pl_module.parameters()])
            self.norms.append(flat.norm().item())

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.rates.append(optimizer.param_groups[0]["lr"])

    overrides = [f"data.root={small_root}", "trainer.gradient_clip_val=1e-3", "trainer.log_every_n_steps=2"]
    module, data, trainer = prepared(tmp_path, *FAST, *overrides)
    trainer.callbacks.insert(0, measure := Measure())
    trainer.fit(module, data)
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows] == ["1", "3"]
    for row, step in zip(rows, (1, 3), strict=True):
        assert float(row["health/gradient_norm"]) == pytest.approx(measure.norms[step], rel=1e-5)
        assert float(row["health/learning_rate"]) == pytest.approx(measure.rates[step], rel=1e-6)
        assert float(row["health/samples_per_second"]) > 0
        assert 0 <= float(row["health/data_wait"]) <= 1
        assert float(row["health/memory_gib"]) * 2**30 == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)
    assert len(set(measure.norms)) == len(set(measure.rates)) == 5
    assert trainer.train_dataloader.waited > 0


def test_memory_is_that_of_the_children_too():
    before = memory_used()
    held = 64 * 2**20
    code = f"x = bytearray(b'1') * {held}; print(len(x), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline()
        assert memory_used() - before > 0.9 * held
        child.communicate(b"\n")


def test_a_process_that_ends_while_it_is_looked_at_counts_nothing(monkeypatch):
    look = psutil.Process.memory_info

    def denied(process):
        raise psutil.AccessDenied(process.pid)

    def ended(process):
        if process.pid == os.getpid():
            return look(process)
        raise psutil.NoSuchProcess(process.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    monkeypatch.setattr(psutil.Process, "memory_info", ended)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert memory_used() == pytest.approx(look(psutil.Process()).rss, rel=0.05)
        child.communicate(b"\n")


def workers() -> list[int]:
    return [child.pid for child in psutil.Process().children() if child.name() != "sh"]


class Signal(Callback):
    """Send a signal to a new child of this process before a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step, self.there = number, step, set(workers())

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            (pid,) = set(workers()) - self.there
            os.kill(pid, self.number)


def with_a_worker(folder: Path, root: Path, number: int, *overrides: str):
    settings = ["data.workers=1", "data.epoch_samples=20", "logger.csv=null", f"data.root={root}"]
    module, data, trainer = prepared(folder, *FAST, *settings, *overrides)
    trainer.callbacks.append(Signal(number, 1))
    trainer.fit(module, data)
    return trainer


def test_a_killed_worker_is_one_sentence_and_a_status(tmp_path, small_root, monkeypatch, capfd):
    settings = [*SHORT, *FAST, "data.workers=1", "data.epoch_samples=20", "logger.csv=null", f"data.root={small_root}"]
    assemble = train.assemble
    monkeypatch.setattr(train, "assemble", lambda plain: assemble(plain, [Signal(signal.SIGKILL, 1)]))
    monkeypatch.setattr(sys, "argv", ["train", *settings, f"hydra.run.dir={tmp_path}"])
    with pytest.raises(SystemExit) as leaving:
        train.main()
    assert leaving.value.code == 1
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    (said,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert re.fullmatch(r"error: The loader's worker \d+ was killed \(Killed\); .*data\.workers.*last\.ckpt\.", said)


def test_a_stalled_worker_is_reported_and_waited_for(tmp_path, small_root, monkeypatch, caplog):
    monkeypatch.setattr(watched_loader, "LOOK", 0.05)
    there, continued = set(workers()), []

    class Continue(logging.Handler):
        def emit(self, record):
            if "No batch" in record.getMessage():
                continued.extend(set(workers()) - there)
                os.kill(continued[0], signal.SIGCONT)

    handler = Continue()
    watched_loader.log.addHandler(handler)
    try:
        trainer = with_a_worker(tmp_path, small_root, signal.SIGSTOP, "data.stalled_after=0.2")
    finally:
        watched_loader.log.removeHandler(handler)
    assert trainer.global_step == 5
    said = [record.getMessage() for record in caplog.records if record.name == watched_loader.log.name]
    # On a busy machine a batch may take as long without anybody's doing: that is reported, too.
    stopped = [line for line in said if f"worker {continued[0]} lives (stopped, 0% of a CPU" in line]
    assert stopped
    assert "kill -CONT" in stopped[0]
    assert said[-1].startswith("The wait for the loader is over")


@pytest.mark.slow
def test_a_stall_may_end_the_training(tmp_path, small_root):
    limits = ["data.stalled_after=null", "data.stop_stalled_after=0.3"]
    with pytest.raises(UserError, match=r"No batch has come .*data\.stop_stalled_after.*last\.ckpt"):
        with_a_worker(tmp_path, small_root, signal.SIGSTOP, *limits)
    assert not psutil.Process().children()


def test_what_to_try_goes_by_what_the_workers_do():
    report = watched_loader._report
    assert "data.workers=0" in report(120, [])
    assert "smaller data.workers" in report(120, [("busy", "worker 1 lives"), ("dead", "worker 2 is dead")])
    assert "larger data.workers" in report(120, [("busy", "worker 1 lives")])
    assert "local one" in report(120, [("disk", "worker 1 lives")])


def windows(level, *, spread: float, seed: int, count: int = 60, size: int = 200):
    """Losses in windows: a level by the number of the window, plus noise with the heavy tail of mixed tasks."""
    draw = random.Random(seed)
    for number in range(count):
        jumps = (draw.random() < 0.03 for _ in range(size))
        yield [level(number) + draw.gauss(0, spread) * (8 if jump else 1) for jump in jumps]


def test_short_windows_need_a_higher_rise():
    for seed in range(10):
        assert rises(windows(lambda n: 0.0, spread=1.0, seed=seed, count=200, size=20)) == []


def rises(curve) -> list:
    trend = LossTrend(factor=1.0, windows=3)
    found = [trend.add(200 * (number + 1) - 1, losses) for number, losses in enumerate(curve)]
    return [rise for rise in found if rise is not None]


@pytest.mark.parametrize(
    "level",
    [
        lambda n: -3 - 2 * (1 - math.exp(-n / 10)),
        lambda n: 0.2,
        lambda n: 0.05 + 0.3 / (1 + n),
        lambda n: -4 + (3 if n in (20, 41) else 0),  # jumps that come back
    ],
    ids=["falling", "flat", "positive", "jumps"],
)
def test_no_loss_that_falls_or_stays_is_called_rising(level):
    for seed in range(3):
        assert rises(windows(level, spread=0.05, seed=seed)) == []
        assert rises(windows(level, spread=1.0, seed=seed)) == []


def test_a_rise_is_reported_once_with_where_it_began():
    def level(number):
        return -4.0 if number <= 30 else -4.0 + 0.2 * (number - 30)

    for seed in range(5):
        (rise,) = rises(windows(level, spread=0.3, seed=seed))
        assert 200 * 29 < rise.since < 200 * 33
        assert rise.start == pytest.approx(-4.0, abs=0.15)
        assert 200 * 33 < rise.step < 200 * 40
        assert rise.now > rise.start + 0.2


def test_after_a_new_best_a_second_rise_is_reported():
    levels = [0.0, 5, 5, 5, 5, -1, 5, 5, 5]
    found = rises([level + noise for noise in (-0.1, 0, 0.1)] for level in levels)
    assert [(rise.since, rise.start, rise.now) for rise in found] == [(199, 0.0, 5.0), (1199, -1.0, 5.0)]


def test_what_is_not_finite_does_not_count():
    trend = LossTrend(factor=1.0, windows=1)
    assert trend.add(1, [math.nan, math.inf]) is None
    assert trend.add(2, [1.0, math.nan, 1.1, 0.9]) is None
    assert trend.add(3, [3.0, math.nan]).start == 1.0


def test_a_training_whose_loss_rises_says_so_once(tmp_path, small_root, caplog):
    settings = [f"data.root={small_root}", "data.epoch_samples=100", "logger.csv=null", "callbacks.rising.window=2"]
    module, data, trainer = prepared(
        tmp_path, *FAST, *settings, "trainer.max_steps=14", "trainer.limit_train_batches=4"
    )
    loss = module.loss

    def rising(*args):
        found = loss(*args)
        return found._replace(total=found.total * 0 + max(trainer.global_step - 3, 0))

    module.loss = rising
    trainer.fit(module, data)
    assert caplog.text.count("The loss has been rising since step 3: from 0 to 5.5 at step 9 (medians of 2 steps)") == 1
    assert caplog.text.count("The loss has been rising") == 1


def test_a_window_goes_on_after_a_resume():
    def steps(callback, losses):
        for step, loss in losses:
            module = SimpleNamespace(trained=Trained(torch.tensor(loss), {}))
            trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=step + 1, datamodule=None)
            callback.on_train_batch_end(trainer, module, None, None, 0)
        return callback.state_dict()

    losses = list(enumerate([0.5, 0.4, 0.3, 0.0, 0.1, 0.2, 3.0, 4.0, 5.0, 6.0]))
    whole, cut, resumed = (RisingLoss(window=3) for _ in range(3))
    resumed.load_state_dict(steps(cut, losses[:5]))
    assert steps(resumed, losses[5:]) == steps(whole, losses)
    assert whole.trend.state["best"] == pytest.approx(0.1)


def test_in_a_curriculum_the_loss_may_rise():
    data = SimpleNamespace(curriculum=Curriculum(samples=100), batch_size=4)
    for step, inside in ((24, True), (25, False)):
        trainer = SimpleNamespace(datamodule=data, world_size=1, accumulate_grad_batches=1, global_step=step)
        assert _in_curriculum(trainer) == inside
