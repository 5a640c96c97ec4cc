"""A real offline run at W&B, read back record by record from its log file; and one whose service is killed."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from short_runs import prepared

from opir_lightning.checkpoints import load_model
from opir_lightning.provenance import git_state
from opir_lightning.training.callbacks import WandbRun

pytestmark = pytest.mark.slow
BLOCK, HEAD = 32768, struct.Struct("<IHB")  # frames never cross a block; each has checksum, length, kind
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file, which has the framing of a LevelDB log."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, payload = 7, b""  # after the file's own header
    while place + HEAD.size <= len(content):
        if (left := BLOCK - place % BLOCK) < HEAD.size:
            place += left
            continue
        checksum, length, kind = HEAD.unpack_from(content, place)
        data = content[place + HEAD.size : place + HEAD.size + length]
        assert checksum == zlib.crc32(bytes([kind]) + data)
        place += HEAD.size + length
        payload += data
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def values(items: Any) -> dict[str, Any]:
    """Key, or keys joined by dots, and value of what a record updates."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read(folder: Path) -> SimpleNamespace:
    """What one offline run holds: metadata, configuration, history, last summary, artifacts."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    found = SimpleNamespace(folder=run, run=None, config={}, history=[], summary={}, artifacts=[])
    for record in records(log):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
        elif kind == "config":
            found.config |= values(record.config.update)
        elif kind == "history":
            found.history.append(values(record.history.item))
        elif kind == "summary":
            found.summary |= values(record.summary.update)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
    return found


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Four steps with two validations."""
    import wandb

    wandb.teardown()  # it reads its environment once a process
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DATA_DIR", str(folder / "data"))
        module, data, trainer = prepared(folder, "logger=wandb", "trainer.max_steps=4", "tags=[short]", "seed=3")
        state = git_state()
        trainer.fit(module, data)
        wandb.finish()
        wandb.teardown()
    with (folder / "log" / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    return SimpleNamespace(path=folder, net=module.net, metrics=metrics, state=state, **vars(read(folder)))


def test_a_run_has_its_group_tags_configuration_and_the_state_of_the_code(offline):
    run = offline.run
    assert (run.display_name, run.run_group, run.job_type, list(run.tags)) == ("demo-seed3", "demo", "demo", ["short"])
    assert offline.config["data"]["crop"] == 32
    assert offline.config["model"]["_target_"] == "opir_lightning.models.OPIR"
    assert offline.config["git"] == offline.state
    assert set(offline.config["provenance"]) >= {"commit", "torch", "device"}


def test_every_metric_is_there_over_the_step_with_its_summary(offline):
    for metric in offline.metrics[0]:
        if metric in ("step", "epoch"):
            continue
        want = [(int(row["step"]), float(row[metric])) for row in offline.metrics if row[metric]]
        got = [(row["trainer/global_step"], float(row[metric])) for row in offline.history if metric in row]
        assert [step for step, _ in got] == [step for step, _ in want], metric
        assert [value for _, value in got] == pytest.approx([value for _, value in want]), metric
        best = min if metric == "val/calibration_error" or metric.startswith("train/") else max
        best = max if metric == "train/task_accuracy" else best
        numbers = [value for _, value in want]
        if metric in ("health/samples_per_second", "health/data_wait"):
            best = mean
        summary = {kind: float(value) for kind, value in offline.summary[metric].items()}
        assert summary == pytest.approx({"last": numbers[-1], best.__name__: best(numbers)}), metric


def test_every_picture_is_that_of_the_run_folder(offline):
    for name, folder in [("pictures", "panels"), *((x, x) for x in ("operators", "confusion", "calibration"))]:
        shown = [row for row in offline.history if f"pictures/{name}.path" in row]
        assert [row["trainer/global_step"] for row in shown] == [2, 4]
        for row in shown:
            path = row[f"pictures/{name}.path"]
            file = offline.path / folder / f"step_{row['trainer/global_step']:07d}.png"
            assert np.array_equal(np.asarray(Image.open(offline.folder / "files" / path)), np.asarray(Image.open(file)))


def staged(artifact: Any, ending: str) -> list[Path]:
    """Files of an artifact as they wait for their upload."""
    return [Path(item.local_path) for item in artifact.manifest.contents if item.path.endswith(ending)]


def test_every_table_has_the_rows_of_its_file_and_the_pictures_too(offline):
    for name, folder in [("pictures", "panels"), *((x, x) for x in ("operators", "confusion", "calibration"))]:
        found = [artifact for artifact in offline.artifacts if f"-tables{name}-" in artifact.name]
        assert len(found) == 2
        (file,) = staged(found[1], ".table.json")
        table = json.loads(file.read_text())
        with (offline.path / folder / f"{name}.csv").open() as lines:
            want = [row for row in csv.DictReader(lines) if row["step"] == "4"]
        assert len(table["data"]) == len(want)
        for row, cells in zip(want, table["data"], strict=True):
            got = dict(zip(table["columns"], cells, strict=True))
            for column in row.keys() - {"step"}:
                # None is infinity: an undamaged picture's score as its own input
                assert row[column] == ("inf" if got[column] is None else str(got[column]))
        if name == "pictures":
            assert table["columns"][-5:] == ["degraded", "stage 1", "uncertainty", "stage 2", "clean"]
            assert {cell["_type"] for cells in table["data"] for cell in cells[-5:]} == {"image-file"}
            assert {Image.open(picture).size for picture in staged(found[1], ".png")} == {(64, 64)}


def test_weights_are_artifacts_with_aliases_and_load(offline):
    weights = [artifact for artifact in offline.artifacts if artifact.type == "model"]
    aliases = [set(artifact.aliases) - {"latest"} for artifact in weights]
    assert set.union(*aliases) >= {"best", "last", "step-4"}
    last = next(artifact for artifact, names in zip(weights, aliases, strict=True) if "last" in names)
    assert json.loads(last.metadata)["step"] == 4
    (file,) = staged(last, "model.safetensors")
    copy = file.parent / "copy.safetensors"
    copy.write_bytes(file.read_bytes())  # staged files have no ending
    net, _ = load_model(copy)
    for name, value in net.state_dict().items():
        assert np.array_equal(value, offline.net.state_dict()[name]), name


def test_every_training_of_a_process_is_a_run_of_its_own(tmp_path, monkeypatch):
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    for number in range(2):
        run = WandbRun(project="p", save_dir=str(tmp_path / str(number)), name=f"job{number}", offline=True)
        run.log_metrics({"train/loss": float(number)}, step=0)
        run.finalize("success")
    wandb.finish()
    wandb.teardown()
    for number in range(2):
        found = read(tmp_path / str(number))
        assert found.run.display_name == f"job{number}"
        assert [row["train/loss"] for row in found.history] == [number]


def test_a_training_goes_on_when_the_service_of_wandb_is_killed(tmp_path, monkeypatch, caplog):
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    module, data, trainer = prepared(tmp_path, "logger=wandb", "trainer.max_steps=4")
    services = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    step = module.training_step

    def killing_step(batch, batch_idx):
        if trainer.global_step == 2:
            for service in services:
                service.kill()
        return step(batch, batch_idx)

    module.training_step = killing_step
    trainer.fit(module, data)
    assert services
    assert trainer.global_step == 4
    with (tmp_path / "log" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["train/loss"] != "" for row in rows].count(True) == 4
    assert [row["val/psnr"] != "" for row in rows].count(True) == 2
    assert (tmp_path / "calibration" / "step_0000004.png").is_file()
    assert len([record for record in caplog.records if "W&B failed" in record.getMessage()]) == 1
