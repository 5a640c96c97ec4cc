"""A training step that is recorded and replayed."""

from __future__ import annotations

import pytest
import torch
from short_runs import prepared

from opir_lightning.errors import UserError
from opir_lightning.models.degradation_code import Standardise
from opir_lightning.training.callbacks import graphed
from opir_lightning.training.callbacks.graphed import GraphedStep, Recording

STEPS = ["trainer.max_steps=6", "trainer.limit_val_batches=0", "callbacks.best=null", "data.epoch_samples=12"]

RECORD = graphed.record


def fitted(run_dir, *overrides: str):
    """Weights, last losses by name, and the module of a run that starts with complete statistics."""
    module, data, trainer = prepared(run_dir, *STEPS, *overrides)
    for part in module.modules():
        if isinstance(part, Standardise):
            part.samples = 3  # two steps of two
    trainer.fit(module, data, weights_only=True)
    values = {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("train/")}
    return torch.cat([p.detach().flatten().cpu() for p in module.net.parameters()]), values, module


def recompute(step, batch, parameters):
    """A recording for a device that has no graphs: as there, all results lie where they did, with new values."""
    inputs = [value.clone() for value in batch]

    @torch.enable_grad()
    def run():
        total, values = step(*inputs)
        return total.detach(), values.detach(), torch.autograd.grad(total, parameters, allow_unused=True)

    total, values, gradients = run()

    def replay():
        again = run()
        total.copy_(again[0])
        values.copy_(again[1])
        for place, gradient in zip(gradients, again[2], strict=True):
            assert (place is None) == (gradient is None)
            if place is not None:
                place.copy_(gradient)

    return Recording(replay, inputs, total, values, gradients)


def test_what_is_replayed_trains_as_what_is_computed(tmp_path, monkeypatch):
    """A batch that is not handed over, values that the next replay overwrites, a gradient of another parameter."""
    counted = []

    def record(step, batch, parameters):
        recording = recompute(step, batch, parameters)
        return recording._replace(replay=lambda: (counted.append(None), recording.replay()))

    more = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=3"]
    expected, losses, _ = fitted(tmp_path / "a", *more)
    monkeypatch.setattr(GraphedStep, "on_train_start", lambda *_: None)
    monkeypatch.setattr(graphed, "record", record)
    found, again, module = fitted(tmp_path / "b", *more, "cuda_graph=true")
    assert len(counted) == 6 - 3  # two batches complete the statistics, and the third finds that out
    assert again == losses
    assert torch.equal(found, expected)
    assert "batch_loss" not in module.__dict__


def test_a_batch_of_another_size_is_computed_as_usual(tmp_path, monkeypatch):
    monkeypatch.setattr(GraphedStep, "on_train_start", lambda *_: None)
    monkeypatch.setattr(graphed, "record", recompute)
    module, data, trainer = prepared(tmp_path, *STEPS, "trainer.max_steps=1", "cuda_graph=true")
    trainer.fit(module, data, weights_only=True)
    graph = next(callback for callback in trainer.callbacks if isinstance(callback, GraphedStep))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    graph._recording = recompute(graph._step_of(trainer, module), batch[:-1], list(module.net.parameters()))
    module.net.code_estimator.norm.eval()  # it would add each batch to its statistics
    one = batch._replace(**{name: value[:1] for name, value in batch._asdict().items()})
    assert torch.equal(graph._replay(module, one).total, module.batch_loss(one).total)


def test_without_a_cuda_device_it_is_refused(tmp_path):
    module, data, trainer = prepared(tmp_path, *STEPS, "cuda_graph=true", "trainer.accelerator=cpu")
    with pytest.raises(UserError, match="one CUDA device, and this training is on 1 of kind cpu"):
        trainer.fit(module, data, weights_only=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_replayed_on_a_gpu_it_learns_the_same(tmp_path, monkeypatch, precision):
    recordings = []
    monkeypatch.setattr(graphed, "record", lambda *given: recordings.append(RECORD(*given)) or recordings[-1])
    more = [
        "trainer=gpu",
        f"trainer.precision={precision}",
        "data.degrade_on=workers",
        "trainer.enable_progress_bar=false",
    ]
    expected, losses, _ = fitted(tmp_path / "a", *more)
    found, again, _ = fitted(tmp_path / "b", *more, "cuda_graph=true")
    assert len(recordings) == 1
    rounding = 1e-4 if precision == "32-true" else 2e-2
    assert again == pytest.approx(losses, rel=rounding, abs=rounding)
    assert (found - expected).norm() < rounding * expected.norm()
