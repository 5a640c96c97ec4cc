"""The commands as a user types them: what mistakes get, and the whole way from training to a restored picture."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from opir_lightning import evaluate, restore, train
from opir_lightning.data.sources import EMBEDDED

TINY = [
    "experiment=demo",
    "trainer=smoke",
    "trainer.max_steps=2",
    "trainer.max_time=null",
    "trainer.enable_progress_bar=false",
    "callbacks.progress=null",
    "data.crop=32",
    "data.batch_size=2",
    "data.val_pictures=1",
    "data.val_centre=64",
    "model.width=8",
    "model.features=8",
]


@pytest.fixture
def say(monkeypatch, tmp_path, capfd):
    """Call an entry point as its command line would; returns exit status and what went to standard error."""
    monkeypatch.chdir(tmp_path)
    # Where coverage is measured the interpreter is traced, which Hydra takes for a debugger and shows it everything.
    monkeypatch.setattr("hydra._internal.utils.is_under_debugger", lambda: False)

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        try:
            module.main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code
        return status, capfd.readouterr().err

    return call


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "sets" / "BSD400"
    folder.mkdir(parents=True)
    shutil.copy(EMBEDDED / "train" / "wine.jpg", folder)
    (folder.parent / "BSD-val-rest").mkdir()
    with Image.open(EMBEDDED / "heldout" / "bridge.jpg") as picture:  # scoring whole ones takes longer than the rest
        picture.crop((100, 100, 180, 164)).save(folder.parent / "BSD-val-rest" / "bridge.png")
    return folder


def one_sentence(err: str) -> str:
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_data_folder_that_is_missing_or_empty_is_one_sentence(say, tmp_path):
    status, err = say(train, *TINY, f"data.root={tmp_path}/nowhere")
    assert status == 1
    assert "does not exist; set data.root" in one_sentence(err)
    (tmp_path / "empty").mkdir()
    status, err = say(train, *TINY, f"data.root={tmp_path}/empty")
    assert status == 1
    assert "BSD400" in one_sentence(err)


@pytest.mark.parametrize(
    ("module", "arguments", "setting"),
    [
        (train, [], "hydra.run.dir"),
        (train, ["-m", "experiment=ablation/stages"], "hydra.sweep.dir"),
        (evaluate, ["checkpoint=opir_tiny"], "hydra.run.dir"),
    ],
)
def test_a_run_folder_that_cannot_be_made_is_one_sentence(say, tmp_path, module, arguments, setting):
    (tmp_path / "file").touch()
    status, said = say(module, *arguments, f"{setting}={tmp_path}/file/run")
    assert status == 1
    assert said == (
        f"error: '{tmp_path}/file/run' cannot be written to (Not a directory); make room, or choose another folder "
        f"with {setting}.\n"
    )


def test_a_broken_picture_is_one_sentence_with_its_name(say, photos):
    (photos / "torn.png").write_bytes((photos / "wine.jpg").read_bytes()[:2000])
    status, err = say(train, *TINY, f"data.root={photos.parent}")
    assert status == 1
    assert "torn.png" in one_sentence(err)


def test_an_unknown_task_and_a_mistyped_key_are_one_sentence(say):
    status, err = say(train, *TINY, "tasks=[none,snow]")
    assert status == 1
    assert "Unknown task 'snow'" in one_sentence(err)
    status, err = say(train, *TINY, "+model.widht=3")
    assert status == 1
    assert "Did you mean 'width'" in one_sentence(err)
    status, err = say(train, *TINY, "model.widht=3")
    assert status == 1
    assert "widht" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("threads=0", "threads is 0; it must be 1 or more"),
        ("data.batch_size=0", "data.batch_size is 0"),
        ("callbacks.ema.every=0", "callbacks.ema.every is 0"),
        ("callbacks.ema.decay=1", "callbacks.ema.decay is 1"),
        ("schedule.warmup=2", "schedule.warmup is 2"),
        ("seed=-1", "seed is -1; it must be from 0 to 4294967295"),
        ("trainer.max_steps=0", "trainer.max_steps is 0; it must be more than 0, or no step would be taken"),
        ("data.workers=x", "data.workers is 'x'; it must be a whole number or null"),
        ("+data.train.nois.weight=2", "Did you mean 'data.train.noise'?"),
        ("data.crop=100000", "data.crop is 100000; it must be 4096 or less, or no memory holds a batch"),
        ("degradations.rain.severity=[0.9,0.1]", "its first end must not be more than its second"),
        ("trainer.accelerator=gqu", "'trainer' cannot be built with its settings: You selected an invalid accelerator"),
    ],
)
def test_a_setting_out_of_its_range_is_one_sentence(say, override, said):
    status, err = say(train, *TINY, override)
    assert status == 1
    assert said in one_sentence(err)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tile=0", "tile is '0'; it must be auto, null or a number of pixels"),
        ("tile=1.5", "tile is '1.5'"),
        ("threads=0", "threads is 0"),
        ("benchmark.severity=[1,0.3]", "benchmark.severity is [1, 0.3]; its first end must not be more"),
        ("+benchmark.severty=[0,1]", "'benchmark.severty' is not a setting"),
        ("+benchmark.embedded.nois.sigma_255=3", "Did you mean 'benchmark.embedded.noise'?"),
        ("device=meta", "Nothing here runs on the device 'meta'"),
        (f"checkpoint={'x' * 300}", "There is no weights file"),
    ],
)
def test_what_an_evaluation_cannot_do_is_one_sentence(say, override, said):
    status, err = say(evaluate, "checkpoint=opir_tiny", override)
    assert status == 1
    assert said in one_sentence(err)


def test_a_lack_of_memory_is_one_sentence(say, monkeypatch):
    def assemble(plain):
        torch.empty(2**44)

    monkeypatch.setattr(train, "assemble", assemble)
    status, err = say(train, *TINY)
    assert status == 1
    assert "not enough memory for this; take smaller crops" in one_sentence(err)


def test_weights_of_something_else_are_one_sentence(say, tmp_path):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, tmp_path / "resnet.ckpt")
    for name in ("resnet.safetensors", "resnet.ckpt", "nowhere.ckpt"):
        status, err = say(evaluate, f"checkpoint={tmp_path}/{name}")
        assert status == 1
        assert name in one_sentence(err)


def test_the_whole_way_from_training_to_scores_and_a_restored_picture(say, tmp_path, photos, monkeypatch):
    run_dir = tmp_path / "run"
    status, err = say(train, *TINY, f"data.root={photos.parent}", f"hydra.run.dir={run_dir}")
    assert status == 0, err
    weights = run_dir / "model.safetensors"

    cbsd = photos.parent / "CBSD68"
    cbsd.mkdir()
    with Image.open(EMBEDDED / "heldout" / "friends.jpg") as picture:
        picture.crop((100, 100, 201, 177)).save(cbsd / "friends.png")
    scores = tmp_path / "scores"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    status, err = say(
        evaluate, f"checkpoint={weights}", f"data.root={photos.parent}", f"hydra.run.dir={scores}",
        "sets=[CBSD68-sigma25,CBSD68-sigma50]",
    )  # fmt: skip
    assert status == 0, err
    results = json.loads((scores / "results.json").read_text())
    assert set(results) == {"sets", "meta"}
    assert not torch.backends.cudnn.allow_tf32  # or a GPU would round what it multiplies to ten bits
    for name, low, high in (("CBSD68-sigma25", 20, 22), ("CBSD68-sigma50", 14.5, 16.5)):
        for profile in ("published", "full"):
            row = results["sets"][name][profile]
            assert low < row["psnr_input"] < high
            assert {"psnr_input", "psnr", "ssim"} <= set(row)
    assert results["meta"]["weights"]["steps"] == 2

    status, err = say(evaluate, f"checkpoint={weights}", f"data.root={photos.parent}", "sets=[Rain100L]")
    assert status == 1
    assert "Rain100L" in one_sentence(err)
    status, err = say(evaluate, f"checkpoint={weights}", f"data.root={photos.parent}", "sets=[Rain100]")
    assert status == 1
    assert "There is no test set 'Rain100'" in one_sentence(err)

    assert restore.main([str(cbsd), "-o", str(tmp_path / "out"), "--weights", str(weights)]) == 0
    with Image.open(tmp_path / "out" / "friends.png") as restored:
        assert restored.size == (101, 77)


@pytest.mark.slow
def test_the_smoke_run_of_the_default_experiment_in_a_second_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "opir_lightning.train", "experiment=five_task", "trainer=smoke"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/five_task/*/results.json"))) == 1
