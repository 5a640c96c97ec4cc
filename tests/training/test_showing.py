"""What a validation leaves behind as files, with W&B missing or failing all the while."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from short_runs import prepared

from opir_lightning.errors import UserError
from opir_lightning.metrics import score
from opir_lightning.models import OPIR
from opir_lightning.training.callbacks import OperatorPictures, TaskConfusion, WandbRun
from opir_lightning.training.callbacks.confusion import confusion_matrix
from opir_lightning.training.callbacks.showing import _add_rows
from opir_lightning.types import Restoration


def table(path: Path, step: int | None = None) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if step is None or row["step"] == str(step)]


@pytest.fixture
def wandb_anew(tmp_path, monkeypatch):
    """W&B reads its environment once a process; the tests have one each."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    yield monkeypatch
    wandb.teardown()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps with two validations, logger=wandb, and the package wandb not installed."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        module, data, trainer = prepared(folder, "logger=wandb", "trainer.max_steps=4")
        trainer.fit(module, data)
    scores = [row for row in table(folder / "log" / "metrics.csv") if row["val/psnr"]]
    return SimpleNamespace(folder=folder, net=module.net.eval(), data=data, steps=trainer.global_step, scores=scores)


def test_a_training_ends_and_its_numbers_are_whole_without_wandb(run):
    assert run.steps == 4
    assert len(run.scores) == 2
    assert len([row for row in table(run.folder / "log" / "metrics.csv") if row["train/loss"]]) == 4
    assert (run.folder / "checkpoints" / "last.ckpt").is_file()


def test_every_validation_leaves_its_pictures(run):
    for name in ("panels", "operators", "confusion", "calibration"):
        files = sorted((run.folder / name).glob("*.png"))
        assert [file.name for file in files] == ["step_0000002.png", "step_0000004.png"]
        with Image.open(files[1]) as picture:
            assert picture.width > 200


def test_rows_of_pictures_have_their_scores_and_the_named_task(run):
    rows = table(run.folder / "panels" / "pictures.csv", step=4)
    assert [(row["set"], row["task"]) for row in rows] == [("undamaged", "none"), ("noise", "noise")]
    sample = next(val_set for val_set in run.data.val_sets if val_set.name == "noise")[0]
    with torch.no_grad():
        restored = run.net(sample.degraded[None])
    for name, picture in (
        ("psnr_input", sample.degraded[None]),
        ("psnr_coarse", restored.coarse),
        ("psnr_refined", restored.refined),
    ):
        assert float(rows[1][name]) == pytest.approx(float(score(picture, sample.clean[None])["psnr"]), abs=2e-3)
    assert rows[1]["named"] == run.net.tasks[int(restored.task_logits.argmax())]


def test_operators_are_those_of_the_weights_that_are_kept(run):
    """The averaged weights are gone when a validation ends, and the window must be enough of the picture."""
    rows = table(run.folder / "operators" / "operators.csv", step=4)
    assert len(rows) == 2 * 2 * 3  # sets, stages, colours
    sample = next(val_set for val_set in run.data.val_sets if val_set.name == "noise")[0]
    image = sample.degraded[None]
    row, column = int(rows[-1]["row"]), int(rows[-1]["column"])
    assert (row, column) == (32, 32)
    with torch.no_grad():
        operators = run.net.operators_at(image, row, column, code=run.net.estimate_code(image))
    for found in rows[6:]:
        operator, colour = operators[int(found["stage"]) - 1], ("red", "green", "blue").index(found["colour"])
        taps = torch.tensor([float(value) for value in found["taps"].split()])
        torch.testing.assert_close(taps, operator.kernel[colour].flatten(), rtol=1e-3, atol=1e-6)
        assert float(found["sum"]) == pytest.approx(float(operator.kernel[colour].sum()), abs=2e-5)
        assert float(found["offset"]) == pytest.approx(float(operator.offset[colour]), abs=2e-5)
    before = table(run.folder / "operators" / "operators.csv", step=2)
    assert [row["taps"] for row in before] != [row["taps"] for row in rows]


def test_confusion_and_calibration_agree_with_the_logged_numbers(run):
    for step, scores in zip((2, 4), run.scores, strict=True):
        cells = table(run.folder / "confusion" / "confusion.csv", step)
        pictures = {(cell["true"], cell["named"]): int(cell["pictures"]) for cell in cells}
        assert sum(pictures.values()) == 4
        right = pictures["none", "none"] + pictures["noise", "noise"]
        assert float(scores["val/task_accuracy"]) == pytest.approx(right / 4)
        bins = table(run.folder / "calibration" / "calibration.csv", step)
        together = [row for row in bins if row["set"] == "all"]
        pixels = sum(int(row["pixels"]) for row in together)
        assert pixels == 4 * 64 * 64 == sum(int(row["pixels"]) for row in bins if row["set"] != "all")
        error = sum(int(row["pixels"]) * abs(float(row["predicted"]) - float(row["true"])) for row in together) / pixels
        assert float(scores["val/calibration_error"]) == pytest.approx(error, rel=0.01)


def test_scores_by_task_are_the_means_over_its_pictures(run):
    last = run.scores[-1]
    gain = float(last["val/noise/psnr"]) - float(last["val/noise/psnr_input"])
    assert float(last["val_task/noise/gain"]) == pytest.approx(gain, abs=1e-4)
    assert float(last["val_task/none/psnr"]) == pytest.approx(float(last["val/undamaged/psnr"]), abs=1e-4)
    assert "val_task/none/gain" not in last  # an undamaged picture is infinitely good as it is


def test_a_resumed_run_replaces_the_rows_that_come_again(tmp_path):
    file = tmp_path / "confusion.csv"
    for step, count in ((2, 1), (4, 2), (6, 3), (4, 5), (6, 6)):
        _add_rows(file, ["step", "pictures"], [[step, count], [step, count]])
    assert [(row["step"], row["pictures"]) for row in table(file)[::2]] == [("2", "1"), ("4", "5"), ("6", "6")]
    assert len(table(file)) == 6


def test_a_confusion_matrix_counts_true_by_named():
    true, named = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 2])
    assert confusion_matrix(true, named, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert confusion_matrix(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 1).tolist() == [[4]]


def test_pictures_of_unknown_tasks_are_left_out_of_the_confusion(tmp_path):
    logged = {}
    module = SimpleNamespace(
        net=SimpleNamespace(tasks=("none", "noise")), log=lambda name, value, **_: logged.update({name: value})
    )
    files = SimpleNamespace(checkpoint_io=None)
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, global_step=7, loggers=[], strategy=files)
    callback = TaskConfusion(folder=str(tmp_path))
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    outputs = SimpleNamespace(restored=Restoration(None, None, None, logits))
    callback.on_validation_batch_end(trainer, module, outputs, SimpleNamespace(task=torch.tensor([1, -1, 1])), 0)
    callback.on_validation_epoch_end(trainer, module)
    assert logged["val/task_accuracy"] == 0.5
    assert [row["pictures"] for row in table(tmp_path / "confusion.csv")] == ["0", "0", "1", "1"]


def test_a_place_outside_the_picture_is_refused():
    with pytest.raises(UserError, match=r"pixels has .*1\.2.*\[0, 1\]"):
        OperatorPictures(folder=".", pixels=[(0.5, 1.2)])


def test_an_unknown_choice_of_weights_is_refused():
    with pytest.raises(UserError, match="must be end, each or off"):
        WandbRun(project="p", save_dir=".", weights="always")


@pytest.mark.slow
def test_a_run_without_an_account_warns_once_and_is_not_tried_again(tmp_path, wandb_anew, caplog):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        wandb_anew.delenv(name, raising=False)
    wandb_anew.setenv("NETRC", str(tmp_path / "netrc"))
    wandb_anew.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb_anew.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # in no case anybody's account
    run = WandbRun(project="p", save_dir=str(tmp_path))
    run.log_hyperparams({"seed": 0})
    run.log_metrics({"train/loss": 1.0}, step=1)
    run.finalize("success")
    assert run.experiment is None
    (warning,) = [record.getMessage() for record in caplog.records if "W&B failed" in record.getMessage()]
    assert str(tmp_path) in warning
    assert "API key" in warning


def test_a_run_that_fails_while_logging_is_left_alone_after_three_failures_in_a_row(tmp_path, wandb_anew, caplog):
    wandb_anew.setenv("WANDB_MODE", "disabled")
    run = WandbRun(project="p", save_dir=str(tmp_path))
    run.log_metrics({"train/loss": 1.0}, step=0)
    calls, broken = [], True

    def log(metrics):
        calls.append(metrics)
        if broken:
            raise ConnectionResetError("the service is gone")

    wandb_anew.setattr(run.experiment, "log", log)
    for _ in range(2):
        run.log_metrics({"train/loss": 1.0}, step=1)
    broken = False  # it recovers: the failures before no longer count
    run.log_metrics({"train/loss": 1.0}, step=2)
    broken = True
    for _ in range(5):
        run.log_metrics({"train/loss": 1.0}, step=3)
    assert len(calls) == 2 + 1 + 3
    assert len([record for record in caplog.records if "W&B failed" in record.getMessage()]) == 1


def test_weights_that_were_not_sent_are_sent_later_with_the_score_that_counts(tmp_path, wandb_anew):
    """The callback takes a best score back where the disk had no room for its weights."""
    wandb_anew.setenv("WANDB_MODE", "disabled")
    net = OPIR(
        tasks=["none"], width=4, encoder_blocks=[1], middle_blocks=1, decoder_blocks=[1], features=4, code_crop=16
    )
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    kept = {"state_dict": state, "model_settings": net.settings, "global_step": 3}
    torch.save(kept, tmp_path / "best.ckpt")
    writer = SimpleNamespace(
        monitor="val/psnr", best_model_path=str(tmp_path / "best.ckpt"), best_model_score=torch.tensor(30.0)
    )
    run = WandbRun(project="p", save_dir=str(tmp_path), weights="each")
    run.log_metrics({"train/loss": 1.0}, step=0)
    sent, broken = [], True

    def log_artifact(artifact, aliases):
        if broken:
            raise ConnectionResetError("the service is gone")
        sent.append((aliases, dict(artifact.metadata)))

    wandb_anew.setattr(run.experiment, "log_artifact", log_artifact)
    run.after_save_checkpoint(writer)
    writer.best_model_score, broken = torch.tensor(20.0), False
    for _ in range(2):
        run.finalize("success")
    assert sent == [(["best", "step-3"], {"step": 3, "val/psnr": 20.0})]


def test_a_training_goes_on_when_wandb_fails_while_it_logs(tmp_path, wandb_anew):
    wandb_anew.setenv("WANDB_MODE", "disabled")
    module, data, trainer = prepared(tmp_path, "logger=wandb", "trainer.max_steps=2", "trainer.limit_val_batches=1")
    (run,) = (logger for logger in trainer.loggers if isinstance(logger, WandbRun))

    def log(metrics):
        raise OSError("no space left on device")

    wandb_anew.setattr(run.experiment, "log", log)
    trainer.fit(module, data)
    assert trainer.global_step == 2
    rows = table(tmp_path / "log" / "metrics.csv")
    assert [row["train/loss"] != "" for row in rows].count(True) == 2
    assert [row["val/psnr"] != "" for row in rows].count(True) == 1
    assert (tmp_path / "operators" / "step_0000002.png").is_file()
