from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opir_lightning.checkpoints import load_model, read_header

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "five_task" / "code_estimator.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("code_estimator", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def pictures(script):
    return script.pictures_of(["data.packs=memory", "data.crop=128", "data.resize_share=0"])


def test_a_picture_is_met_as_it_was_damaged_dark_or_through_a_file(script, pictures):
    seen = [pictures[number] for number in range(60)]
    same = [torch.equal(one.plain, one.met) for one in seen]
    assert 10 < sum(same) < 40  # four in ten have no file
    again = pictures[7]
    assert all(torch.equal(a, b) for a, b in zip(again, seen[7], strict=True))
    assert [int(one.task) for one in seen] == [pictures.mixture[number].task for number in range(60)]
    # Dark by nature: of the statistics, the first three are the mean colours.
    none = pictures.mixture.labels[pictures.mixture.names.index("undamaged")]
    darker = [bool(one.met[:, :3].mean() < 0.8 * one.plain[:, :3].mean()) for one in seen if one.task == none]
    assert any(darker)
    assert not all(darker)


def test_the_estimator_learns_what_it_says_of_the_same_picture_without_a_file(script, pictures):
    model, _ = load_model("opir_tiny")
    parts = [pictures[number] for number in range(80)]
    bank = script.Statistics(*(torch.stack(part) for part in zip(*parts, strict=True)))
    estimator = model.code_estimator
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    severity = script.wanted(estimator, bank)
    first = script.measure(estimator, bank, severity)
    torch.manual_seed(0)
    epochs = list(script.train(estimator, bank, severity, epochs=200, harm=[1.0] * 6, batch_size=40))
    last = script.measure(epochs[-1], bank, severity)
    assert len(epochs) == 200
    assert last["severity"] < 0.6 * first["severity"]
    assert last["met"] > first["met"]
    assert all(torch.equal(before[name], value) for name, value in estimator.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in epochs[-1].state_dict().items() if "norm" in name)


@pytest.mark.slow
def test_the_command_leaves_the_rest_of_the_network_alone(tmp_path):
    weights, banks = tmp_path / "new.safetensors", [tmp_path / "one.pt", tmp_path / "two.pt"]
    for number, bank in enumerate(banks):
        settings = ["data.crop=128", "data.packs=memory", f"seed={number}", "--minutes", "0.001"]
        subprocess.run([sys.executable, SCRIPT, "gather", bank, *settings], check=True, capture_output=True)
    command = [sys.executable, SCRIPT, "train", "opir_tiny", banks[0], "-o", weights, "--check", banks[1]]
    command += ["--epochs", "2", "--width", "100"]
    subprocess.run(command, check=True, capture_output=True)
    old, new = load_model("opir_tiny")[0].state_dict(), load_model(weights)[0].state_dict()
    assert new["code_estimator.mlp.0.weight"].shape[0] == 100
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.startswith("code_estimator.mlp") for name in changed)
    about = read_header(weights).metadata["code"]
    assert about["pictures"] == 32
    assert json.dumps(about["after"])
