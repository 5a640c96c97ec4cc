"""Steps whose loss or gradient is not finite, in real trainings of a few steps."""

from __future__ import annotations

import copy
import csv
import re
from pathlib import Path

import pytest
import torch
from lightning import Callback
from PIL import Image
from safetensors.torch import save
from short_runs import prepared

from opir_lightning.errors import UserError
from opir_lightning.training import bad_batches
from opir_lightning.training.bad_batches import load_batch
from opir_lightning.training.callbacks import ExponentialMovingAverage, FiniteSteps, finite

FAST = [
    "trainer.max_steps=6",
    "data.epoch_samples=12",
    "trainer.limit_val_batches=0",
    "callbacks.best=null",
    "callbacks.panels=null",
    "callbacks.operators=null",
    "callbacks.confusion=null",
    "callbacks.calibration=null",
    "data.packs=memory",
]
QUIET = "logger.csv=null"  # a tenth of the time
EACH = "callbacks.last.every_n_train_steps=1"
ROOT = ""  # set by a fixture
BREAKING = "data.train.noise.degradation={_target_:short_runs.sometimes_broken,_partial_:true}"


def everything(trainer, module):
    """Copies of all that a step may change."""
    (average,) = (callback for callback in trainer.callbacks if isinstance(callback, ExponentialMovingAverage))
    states = {"module": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]}
    return copy.deepcopy({**states, "average": average._average_model.state_dict()})


def differing(one, other, where=""):
    """Names of what is not the same bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [name for key in one for name in differing(one[key], other[key], f"{where}/{key}")]
    return [] if torch.equal(one, other) else [where]


class Breaking(Callback):
    """Break the loss (by a pixel) or the gradient of some steps; note what is there before and after each."""

    def __init__(self, what: str, steps: range) -> None:
        self.what, self.steps, self.before, self.after = what, steps, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append(everything(trainer, pl_module) if trainer.global_step else None)
        if self.what == "loss" and trainer.global_step in self.steps:
            batch.degraded[1, 0, 3, 4] = torch.nan

    def on_after_backward(self, trainer, pl_module):
        if self.what == "gradient" and trainer.global_step in self.steps:
            next(iter(pl_module.parameters())).grad[0] = torch.inf

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(everything(trainer, pl_module))


class Cut(Callback):
    """End a training before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise UserError("cut")


@pytest.fixture(autouse=True)
def _small_pictures(small_root, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", f"data.root={small_root}")


def run(folder: Path, *overrides: str, more: Callback | None = None, resume: str | None = None):
    """A training of six steps; what there is of it is handed back also where it fails."""
    module, data, trainer = prepared(folder, *FAST, ROOT, *overrides)
    if more is not None:
        trainer.callbacks.append(more)
    error = None
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except UserError as raised:
        error = str(raised)
    return module, data, trainer, error


def policy_of(trainer) -> FiniteSteps:
    return next(callback for callback in trainer.callbacks if isinstance(callback, FiniteSteps))


def later(monkeypatch) -> None:
    """As on a GPU: the optimizer is told on the device, and the host asks when it has to know."""
    monkeypatch.setattr(finite, "waits", lambda scalar: False)


@pytest.mark.parametrize(
    ("what", "late", "fused"),
    [("loss", False, True), ("gradient", True, True), pytest.param("loss", True, False, marks=pytest.mark.slow)],
)
def test_a_skipped_step_changes_no_weight_no_optimizer_no_average_no_statistic(
    tmp_path, monkeypatch, what, late, fused
):
    if late:
        later(monkeypatch)
    breaking = Breaking(what, range(3, 4))
    *_, trainer, error = run(
        tmp_path, "callbacks.ema.every=2", f"optimizer.fused={fused}", *([QUIET] * late), more=breaking
    )
    assert error is None
    assert trainer.global_step == 6
    for step in range(1, 6):
        changed = {name.split("/")[1] for name in differing(breaking.before[step], breaking.after[step])}
        averaged = {"average"} if step in (1, 5) else set()  # not after step 3, whose turn it would be
        assert changed == (set() if step == 3 else {"module", "optimizer", *averaged})
    assert policy_of(trainer).skipped == 1
    if late:
        return
    with (tmp_path / "log" / "metrics.csv").open() as file:
        assert [row["health/skipped_steps"] for row in csv.DictReader(file)] == ["0.0"] * 3 + ["1.0"] * 3


@pytest.mark.parametrize(("cut", "late"), [(1, True), pytest.param(3, False, marks=pytest.mark.slow)])
def test_a_resumed_run_skips_the_same_steps_to_the_same_weights(tmp_path, monkeypatch, cut, late):
    """Three epochs of two steps of two batches, cut after a step that was skipped."""
    if late:
        later(monkeypatch)
    common = [QUIET, EACH, BREAKING, "data.epoch_samples=8", "trainer.accumulate_grad_batches=2"]
    whole, _, trainer, _ = run(tmp_path / "whole", *common)
    skipped = sorted({int(file.stem.split("_")[1]) for file in (tmp_path / "whole/bad_batches").glob("*.safetensors")})
    assert cut - 1 in skipped
    run(tmp_path / "cut", *common, more=Cut(cut))
    resumed, _, again, error = run(tmp_path / "cut", *common, resume=str(tmp_path / "cut/checkpoints/last.ckpt"))
    assert error is None
    assert 0 < policy_of(trainer).skipped < 6
    assert policy_of(again).skipped == policy_of(trainer).skipped
    assert differing(whole.state_dict(), resumed.state_dict()) == []
    assert all(value.isfinite().all() for value in resumed.state_dict().values())


def test_stopping_names_step_terms_and_samples_and_leaves_the_checkpoints(tmp_path):
    breaking = Breaking("loss", range(3, 4))
    module, *_, error = run(tmp_path, QUIET, EACH, "callbacks.finite.policy=stop", more=breaking)
    assert re.search(
        r"^Step 3: the loss is not finite \(coarse/frequency, .*uncertainty\); samples: \S+ of \w+; ", error
    )
    assert "step_0000003.safetensors" in error
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert differing(breaking.before[3]["module"], checkpoint["current_model_state"]) == []
    assert differing(breaking.before[3]["module"], module.state_dict()) == []
    batch, about = load_batch(tmp_path / "bad_batches" / "step_0000003.safetensors")
    assert about["suspects"] == [1]
    assert f"{batch.name[1]} of {about['sources'][1]};" in error


def test_a_kept_batch_gives_the_same_loss_and_its_samples_can_be_made_anew(tmp_path):
    """With the gradient broken the terms of the loss are numbers that can be compared."""
    breaking = Breaking("gradient", range(4, 5))
    overrides = [QUIET, "data.epoch_samples=6", "callbacks.finite.policy=stop", "seed=3"]
    module, data, _, error = run(tmp_path, *overrides, more=breaking)
    assert re.search(r"^Step 4: the gradient is not finite \(norm inf\), the loss is; samples: [12] of ", error)
    batch, about = load_batch(tmp_path / "bad_batches" / "step_0000004.safetensors")
    assert (about["step"], about["epoch"], about["settings"]["seed"]) == (4, 1, 3)
    module.train()
    total, terms = module.loss(module.restore_batch(batch), batch.clean, batch.task)
    assert {name: value.item() for name, value in {**terms, "loss": total}.items()} == about["terms"]
    assert about["numbers"] == [8, 9]
    made = [data.mixture[number] for number in about["numbers"]]
    for place, sample in enumerate(made):
        assert torch.equal(sample.degraded, batch.degraded[place])
        assert torch.equal(sample.clean, batch.clean[place])
        assert (sample.task, sample.name) == (int(batch.task[place]), batch.name[place])
        assert data.train[about["sources"][place]].task == module.net.tasks[sample.task]
    with Image.open(tmp_path / "bad_batches" / "step_0000004.png") as picture:
        assert picture.width > 2 * 32
    with pytest.raises(UserError, match="no batch that a training kept"):
        load_batch(Path(finite.__file__).parents[2] / "weights" / "opir_tiny.safetensors")


@pytest.mark.parametrize("about", [None, "{}", '{"names": ["a"]', '["names"]', '{"names": ["a"]}'])
def test_a_batch_that_is_damaged_is_one_sentence(tmp_path, about):
    header = {"format": bad_batches.FORMAT} | ({} if about is None else {"about": about})
    (tmp_path / "batch.safetensors").write_bytes(save({"degraded": torch.zeros(1, 3, 2, 2)}, header))
    with pytest.raises(UserError, match=r"batch\.safetensors' is damaged, or another version"):
        load_batch(tmp_path / "batch.safetensors")


def test_a_step_that_is_judged_in_the_next_epoch_is_of_its_own(tmp_path, monkeypatch):
    later(monkeypatch)
    settings = [QUIET, "data.epoch_samples=6", "callbacks.finite.policy=stop", "callbacks.last=null"]
    *_, error = run(tmp_path, *settings, "callbacks.ema.every=10", more=Breaking("gradient", range(2, 3)))
    assert error.startswith("Step 2: the gradient is not finite")
    _, about = load_batch(tmp_path / "bad_batches" / "step_0000002.safetensors")
    assert (about["epoch"], about["numbers"]) == (0, [4, 5])


def test_steps_that_do_not_recover_stop_with_the_weights_of_before(tmp_path, monkeypatch):
    later(monkeypatch)
    breaking = Breaking("gradient", range(1, 100))
    settings = [QUIET, "callbacks.finite.in_a_row=2", "callbacks.finite.keep=1"]
    module, *_, error = run(tmp_path, *settings, more=breaking)
    assert "Step 3: " in error
    assert "3 steps in a row" in error
    assert differing(breaking.after[0]["module"], module.state_dict()) == []
    assert [file.name for file in (tmp_path / "bad_batches").glob("*.safetensors")] == ["step_0000001.safetensors"]


def test_broken_weights_are_not_written_over_a_checkpoint(tmp_path):
    class Poison(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if trainer.global_step == 3:
                next(iter(pl_module.parameters())).data[0] = torch.nan

    *_, error = run(tmp_path, QUIET, EACH, more=Poison())
    assert "After step 4 weights are not finite" in error
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_a_mistaken_policy_is_named(tmp_path):
    with pytest.raises(UserError, match=r"policy is 'ignore'; it must be skip or stop"):
        FiniteSteps(folder=str(tmp_path), policy="ignore")
