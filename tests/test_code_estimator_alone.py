from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opir_lightning.checkpoints import load_model, read_header

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "five_task"


@pytest.fixture(scope="module", autouse=True)
def _path():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in ("code_bank", "code_estimator"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def banks(_path):
    return importlib.import_module("code_bank")


@pytest.fixture(scope="module")
def script(_path):
    return importlib.import_module("code_estimator")


@pytest.fixture(scope="module")
def pictures(banks):
    return banks.pictures_of(["data.packs=memory", "data.crop=128", "data.resize_share=0"], dark_share=0.35)


@pytest.fixture(scope="module")
def bank(banks, pictures):
    parts = [pictures[number] for number in range(80)]
    return banks.Statistics(*(torch.stack(part) for part in zip(*parts, strict=True)))


def test_a_picture_is_met_as_it_was_damaged_dark_or_through_a_file(pictures):
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


def test_a_part_of_each_picture_is_there_as_it_is_met_and_as_it_should_be(bank, pictures):
    none = bank.task == pictures.mixture.labels[pictures.mixture.names.index("undamaged")]
    error = (bank.piece.float() - bank.good / 255).square().mean((1, 2, 3)).sqrt()
    # Of the undamaged ones, those in dim light too, only a file may have taken something; of the others far more.
    assert error[none].max() < 0.05
    assert (error[none] < 0.002).any()
    assert error[~none].median() > 0.05
    plain, met = (statistics[..., :3].float().mean((1, 2)) for statistics in (bank.plain, bank.met))
    assert (met[none] < 0.7 * plain[none]).any()  # else nothing is said of dim light


def test_the_estimator_learns_what_it_says_of_the_same_picture_without_a_file(script, bank):
    model, _ = load_model("opir_tiny")
    estimator = model.code_estimator
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    severity = script.wanted(estimator, bank)
    first = script.measure(estimator, bank, severity)
    torch.manual_seed(0)
    epochs = list(script.learn_names(estimator, bank, severity, epochs=200, harm=[1.0] * 6, batch_size=40))
    last = script.measure(epochs[-1], bank, severity)
    assert len(epochs) == 200
    assert last["severity"] < 0.6 * first["severity"]
    assert last["met"] > first["met"]
    assert all(torch.equal(before[name], value) for name, value in estimator.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in epochs[-1].state_dict().items() if "norm" in name)


def test_the_loss_of_the_restoration_knows_what_the_code_does_in_both_stages(script, bank, banks, monkeypatch):
    monkeypatch.setattr(script, "STEEPEST", math.inf)
    model, _ = load_model("opir_tiny")
    model.eval().requires_grad_(False)
    model.detach_between_stages = False
    (batch,) = banks.batches(bank, torch.arange(8), 8)
    code = model.code_estimator.judge(batch.met)
    severity = code.severity.requires_grad_()
    script.restoration_loss(model, code._replace(severity=severity), batch)[1].backward()
    changes = []
    for number in range(4):
        step = 0.05 * torch.eye(severity.shape[1])[number]
        low, high = (
            script.restoration_loss(model, code._replace(severity=s), batch)[0] for s in shifted(severity, step)
        )
        changes.append((high - low) / 0.1 / 8)
    slopes = torch.stack([severity.grad[:, :4].flatten(), torch.stack(changes, 1).flatten()])
    assert torch.corrcoef(slopes)[0, 1] > 0.9
    assert 0.8 < slopes[0].norm() / slopes[1].norm() < 1.25


def shifted(severity, step):
    return severity.detach() - step, severity.detach() + step


def test_no_picture_pulls_harder_than_the_steepest(script, bank, banks, monkeypatch):
    monkeypatch.setattr(script, "STEEPEST", 0.5)
    model, _ = load_model("opir_tiny")
    model.eval().requires_grad_(False)
    (batch,) = banks.batches(bank, torch.arange(16), 16)
    code = model.code_estimator.judge(batch.met)
    code = code._replace(task=code.task.requires_grad_(), severity=code.severity.requires_grad_())
    script.restoration_loss(model, code, batch)[1].backward()
    norm = 16 * torch.cat([code.task.grad, code.severity.grad], 1).norm(dim=1)
    assert norm.max() == pytest.approx(0.5, rel=1e-4)
    assert norm.min() < 0.49


def test_the_estimator_learns_what_comes_out_best(script, bank):
    model, _ = load_model("opir_tiny")
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = script.restored_psnr(model, model.code_estimator, bank)
    torch.manual_seed(0)
    *_, last = script.learn_restoring(model, bank, steps=16, every=8, harm=[1.0] * 6, lr=2e-3, batch_size=8)
    assert script.restored_psnr(model, last, bank) > first + 0.1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.detach_between_stages


def test_what_a_label_says_is_learned_and_nothing_else(script, bank):
    model = script.grown(load_model("opir_tiny")[0], label_aware=True)
    before = {name: value.clone() for name, value in model.code_estimator.state_dict().items()}
    blind, first = (script.restored_psnr(model, model.code_estimator, bank, told=told) for told in (False, True))
    torch.manual_seed(0)
    settings = {"steps": 16, "every": 16, "harm": [1.0] * 6, "lr": 1.0, "batch_size": 8}
    (last,) = script.learn_restoring(model, bank, told=True, **settings)
    changed = [name for name, value in last.state_dict().items() if not torch.equal(before[name], value)]
    assert changed == ["label.weight"]
    assert script.restored_psnr(model, last, bank, told=True) > first + 0.1
    assert script.restored_psnr(model, last, bank) == blind


@pytest.mark.slow
def test_the_commands_leave_the_rest_of_the_network_alone(tmp_path):
    weights, later = tmp_path / "new.safetensors", tmp_path / "later.safetensors"
    banks = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for number, bank in enumerate(banks):
        settings = ["data.crop=128", "data.packs=memory", f"seed={number}", "--minutes", "0.001"]
        run("code_bank.py", bank, *settings)
    run(
        "code_estimator.py",
        "name",
        "opir_tiny",
        banks[0],
        "-o",
        weights,
        "--check",
        banks[1],
        "--epochs",
        2,
        "--width",
        100,
    )
    run("code_estimator.py", "restore", weights, banks[0], "-o", later, "--check", banks[1], "--steps", 3)
    told = tmp_path / "told.safetensors"
    run("code_estimator.py", "restore", later, banks[0], "-o", told, "--check", banks[1], "--steps", 3, "--told")
    old, new = load_model("opir_tiny")[0].state_dict(), load_model(later)[0].state_dict()
    assert new["code_estimator.mlp.0.weight"].shape[0] == 100
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    label = "code_estimator.label.weight"
    assert all(name.startswith("code_estimator.mlp") for name in changed - {label})
    assert torch.equal(new[label][:96], old[label])  # wider than it was, and else untouched
    listening = load_model(told)[0].state_dict()
    assert {name for name in new if not torch.equal(new[name], listening[name])} == {label}
    about = read_header(told).metadata["code"][-3:]  # behind what was done to the packaged weights
    assert [one["pictures"] for one in about] == [32, 32, 32]
    assert [one.get("told") for one in about] == [None, False, True]
    assert about[1]["after"]["psnr"] > 0
    assert about[2]["before"]["psnr"] == about[2]["after"]["psnr"]


def run(script, *arguments):
    subprocess.run([sys.executable, FOLDER / script, *map(str, arguments)], check=True, capture_output=True)
