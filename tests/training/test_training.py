"""Real Lightning runs of a few steps: determinism, resume, what a run leaves behind."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch.optim.swa_utils import AveragedModel

from opir_lightning.checkpoints import load_model
from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.errors import UserError
from opir_lightning.train import assemble, train
from opir_lightning.training.callbacks import ExponentialMovingAverage
from opir_lightning.training.module import parameter_groups
from opir_lightning.training.schedules import WarmupCosine

register_schemas()
SMALL = [
    "experiment=demo",
    "data.crop=32",
    "data.batch_size=2",
    "data.workers=0",
    "data.val_pictures=1",
    "data.val_centre=64",
    "model.width=8",
    "model.middle_blocks=1",
    "model.features=8",
    "trainer.max_time=null",
    "trainer.enable_progress_bar=false",
    "callbacks.progress=null",
    "trainer.log_every_n_steps=1",
]


@pytest.fixture(autouse=True, scope="module")
def _small_pictures(small_root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "SMALL", [*SMALL, f"data.root={small_root}"])
        yield


def configuration(run_dir: Path, *overrides: str):
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return compose("train", [*SMALL, f"run_dir={run_dir}", *overrides])


def fit(run_dir: Path, *overrides: str, stop: int | None = None):
    """Fit without the report; with ``stop``, be interrupted after that many steps.

    Returns the module and the samples in the order they were used.
    """
    plain = check_keys(configuration(run_dir, *overrides))
    module, data, trainer, _ = assemble(plain)
    used: list[str] = []
    step = module.training_step

    def recording_step(batch, batch_idx):
        if trainer.global_step == stop:
            raise KeyboardInterrupt
        means = batch.degraded.mean((1, 2, 3))
        used.extend(f"{name}:{value:.6f}" for name, value in zip(batch.name, means, strict=True))
        return step(batch, batch_idx)

    module.training_step = recording_step
    try:
        trainer.fit(module, data, ckpt_path=plain["resume"], weights_only=True)
    except SystemExit:
        assert stop is not None
    return module, used


def weights(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.net.parameters()])


def test_compiled_the_predictor_learns_the_same_and_is_left_as_it_was(tmp_path, monkeypatch):
    """Compiled for the pictures of a validation as well, the backend would be called for their size."""
    seen: list[int] = []  # sides of the pictures that it was called for

    def backend(graph, inputs):
        seen.extend(x.shape[-1] for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[1] == 3)
        return graph

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **options: compiler(forward, backend=backend, **options))
    steps = ["trainer.max_steps=3", "data.epoch_samples=4", "callbacks.best=null"]
    plain, _ = fit(tmp_path / "a", *steps)
    compiled, _ = fit(tmp_path / "b", *steps, "compile=true")
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-5)
    assert seen == [32]
    assert all("forward" not in module.__dict__ for module in compiled.modules())


def test_same_seed_gives_the_same_weights_with_any_number_of_workers(tmp_path):
    steps = ["trainer.max_steps=5", "data.epoch_samples=100", "trainer.limit_val_batches=0", "callbacks.best=null"]
    first, _ = fit(tmp_path / "a", *steps)
    second, _ = fit(tmp_path / "b", *steps, "data.workers=2")
    other, _ = fit(tmp_path / "c", *steps, "seed=1")
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


TWELVE_STEPS = [
    "data.epoch_samples=10",
    "trainer.limit_val_batches=0",
    "callbacks.best=null",
    "callbacks.last.every_n_train_steps=1",
    "schedule.warmup=0",
    "trainer.max_steps=12",
]


@pytest.fixture(scope="module")
def whole(_small_pictures, tmp_path_factory):
    """Module and samples of twelve steps without a pause."""
    return fit(tmp_path_factory.mktemp("whole"), *TWELVE_STEPS)


@pytest.mark.parametrize("cut", [pytest.param(3, marks=pytest.mark.slow), 5, 8])
def test_a_resumed_run_goes_on_with_the_next_sample_to_the_same_weights(tmp_path, whole, cut):
    """Epochs of five steps, cut in the first, at its end, and in the second."""
    _, before = fit(tmp_path, *TWELVE_STEPS, stop=cut)
    resumed, after = fit(tmp_path, *TWELVE_STEPS, f"resume={tmp_path}/checkpoints/last.ckpt")
    uncut, used = whole
    assert before + after == used
    assert torch.equal(weights(resumed), weights(uncut))


def test_a_run_leaves_weights_scores_pictures_and_a_safe_checkpoint(tmp_path, capsys):
    train(configuration(tmp_path, "trainer.max_steps=4", "data.epoch_samples=4"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["tasks"]) == {"noise", "rain", "haze", "blur", "low_light"}
    assert all(set(row) == {"input", "coarse", "refined"} for row in results["tasks"].values())
    assert results["undamaged"]["input"] is None  # infinite
    assert results["meta"]["steps"] == 4
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["config"]["name"] == "demo"
    from_checkpoint, _ = load_model(tmp_path / "checkpoints" / "last.ckpt")
    from_weights, header = load_model(tmp_path / "model.safetensors")
    for name, value in from_weights.state_dict().items():
        torch.testing.assert_close(from_checkpoint.state_dict()[name], value, rtol=0, atol=0)
    assert "demo" in str(header)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 5 * 64
    assert len(list((tmp_path / "panels").glob("*.png"))) == 2
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    log = (tmp_path / "log" / "metrics.csv").read_text().splitlines()[0]
    for term in ("train/refined/rmse", "train/coarse/rmse", "train/uncertainty", "train/task", "val/noise/psnr"):
        assert term in log
    printed = capsys.readouterr().out
    assert "opir_lightning.restore" in printed
    assert "stage 2" in printed


def test_the_last_checkpoint_is_of_the_last_step_however_it_scores(tmp_path):
    """Five steps, epochs of two, with weights that only get worse: the first validation stays the best."""
    short = ["trainer.max_steps=5", "data.epoch_samples=4", "trainer.limit_val_batches=1"]
    fit(tmp_path, *short, "optimizer.lr=0.3", "schedule.warmup=0", "callbacks.ema.decay=0")
    steps = {
        name: torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    }
    assert steps["last"] == 5
    assert steps["best"] < 5


@pytest.mark.parametrize("kept", [[], ["best"], ["best", "last"]])
def test_checkpoints_that_are_left_out_are_not_written(tmp_path, kept):
    without = [f"callbacks.{name}=null" for name in ("best", "last") if name not in kept]
    *_, trainer, _ = assemble(check_keys(configuration(tmp_path, *without)))
    assert sorted(callback.filename for callback in trainer.checkpoint_callbacks) == kept


def test_kept_weights_are_the_moving_average(tmp_path):
    module, _ = fit(tmp_path, "trainer.max_steps=6", "data.epoch_samples=12", "callbacks.ema.decay=0.5")
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    name = "net.stages.0.projection.weight"
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])
    assert torch.equal(checkpoint["state_dict"][name], module.state_dict()[name])


def test_the_average_forgets_the_untrained_weights(tmp_path):
    average = ExponentialMovingAverage(decay=0.999)
    module = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(module.weight)
    averaged = AveragedModel(module, **average._kwargs)
    for value in [0.0, *[1.0] * 30]:
        torch.nn.init.constant_(module.weight, value)
        averaged.update_parameters(module)
    assert averaged.module.weight.item() > 0.99  # with the same decay from the start: 0.03


def test_label_mode_and_one_stage_train_too(tmp_path):
    module, _ = fit(
        tmp_path,
        "trainer.max_steps=2",
        "data.epoch_samples=4",
        "task_code=label",
        "model.stages=1",
        "model.uncertainty=off",
        "trainer.limit_val_batches=1",
    )
    assert torch.isfinite(weights(module)).all()


def test_mixed_precision_trains_and_clips(tmp_path):
    overrides = ("trainer.max_steps=1", "data.epoch_samples=2", "trainer.limit_val_batches=0", "callbacks.best=null")
    moved = {}
    for precision, limit in (("32-true", 1.0), ("bf16-mixed", 1.0), ("bf16-mixed", 1e-9)):
        name = f"{precision}-{limit}"
        # Plain descent: a step is as long as the gradient, which Adam would hide.
        optimizer = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "optimizer.lr=1.0"]
        more = [f"trainer.precision={precision}", f"trainer.gradient_clip_val={limit}", "schedule.warmup=0"]
        before, *_ = assemble(check_keys(configuration(tmp_path / name, *overrides, *optimizer, *more)))
        after, _ = fit(tmp_path / name, *overrides, *optimizer, *more)
        moved[name] = (weights(after) - weights(before)).norm().item()
    exact, mixed, clipped = moved.values()
    assert mixed == pytest.approx(exact, rel=0.05)
    assert clipped < mixed / 100
    fit(tmp_path / "adamw", *overrides, "trainer.precision=bf16-mixed")  # the recipe's optimizer, in one pass


def test_a_run_starts_from_given_weights(tmp_path):
    fit(tmp_path / "first", "trainer.max_steps=2", "trainer.limit_val_batches=0", "callbacks.best=null")
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    module, *_ = assemble(check_keys(configuration(tmp_path / "second", f"init={checkpoint}", "seed=5")))
    for name, value in load_model(checkpoint)[0].state_dict().items():
        assert torch.equal(module.net.state_dict()[name], value)


def test_an_unknown_task_or_code_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Unknown task 'snow'.*haze"):
        train(configuration(tmp_path, "tasks=[none,snow]"))
    with pytest.raises(UserError, match="blind or label"):
        train(configuration(tmp_path, "task_code=maybe"))
    with pytest.raises(UserError, match="no checkpoint"):
        train(configuration(tmp_path, "resume=nowhere.ckpt"))


def test_a_file_to_go_on_from_that_is_no_checkpoint_is_refused_before_anything_is_built(tmp_path):
    (tmp_path / "torn.ckpt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"torn\.ckpt' cannot be read: it is cut off or damaged"):
        train(configuration(tmp_path, f"resume={tmp_path}/torn.ckpt"))


def test_a_folder_of_another_preset_is_recognised(tmp_path):
    rain = tmp_path / "data" / "Train" / "Derain"
    for folder, name in (("rainy", "rain-1.png"), ("gt", "norain-1.png")):
        (rain / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64), "gray").save(rain / folder / name)
    with pytest.raises(UserError, match=r"No training pictures.*run again with data=promptir"):
        train(configuration(tmp_path / "run", f"data.root={tmp_path}/data"))


def test_schedule_rises_then_falls_to_its_last_share():
    schedule = WarmupCosine(warmup=0.1, last=0.02)
    assert schedule(0.0) == 0
    assert schedule(0.05) == pytest.approx(0.5)
    assert schedule(0.1) == pytest.approx(1.0)
    assert schedule(0.55) == pytest.approx((1 + 0.02) / 2)
    assert schedule(1.0) == pytest.approx(0.02)
    assert schedule(1.5) == pytest.approx(0.02)
    with pytest.raises(ValueError, match="share"):
        WarmupCosine(warmup=math.inf)
    with pytest.raises(ValueError, match=r"schedule\.last is -1; it is a factor"):
        WarmupCosine(last=-1)


def test_what_the_optimizer_does_not_take_is_one_sentence(tmp_path):
    module, *_ = assemble(check_keys(configuration(tmp_path, "optimizer.lr=-1")))
    with pytest.raises(UserError, match=r"cannot be made as `optimizer` has it: Invalid learning rate: -1"):
        module.configure_optimizers()


def test_task_parameters_biases_and_norms_are_not_decayed(tmp_path):
    module, *_ = assemble(check_keys(configuration(tmp_path)))
    decayed, *others = parameter_groups(module.net, 5.0)
    names = {id(p): n for n, p in module.net.named_parameters()}
    kept = {names[id(p)] for group in others for p in group["params"] if group["weight_decay"] == 0}
    assert {n for n in names.values() if "task_parameters" in n or n.endswith("bias") or "norm" in n} <= kept
    quick = {names[id(p)] for group in others for p in group["params"] if group["lr_factor"] == 5}
    assert quick == {n for n in names.values() if n.startswith("task_parameters")}
    assert "stages.0.projection.weight" in {names[id(p)] for p in decayed["params"]}
    assert len(kept) + len(decayed["params"]) == len(names)
