"""Weights files: what is saved comes back, and no bad file gets further than one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from opir_lightning import checkpoints
from opir_lightning.checkpoints import FORMAT, find_weights, load_model, read_header, save_weights, start_from
from opir_lightning.errors import UserError
from opir_lightning.files import write_atomically
from opir_lightning.models import OPIR

SETTINGS = {
    "tasks": ["none", "noise", "rain"],
    "width": 4,
    "encoder_blocks": [1],
    "middle_blocks": 1,
    "decoder_blocks": [1],
    "features": 4,
}


@pytest.fixture(scope="module")
def model() -> OPIR:
    torch.manual_seed(0)
    net = OPIR.from_settings(SETTINGS).eval()
    for value in net.state_dict().values():  # the running means too
        if value.is_floating_point():
            value.add_(0.1 * torch.rand(value.shape))
    return net


def parts(model: OPIR) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a good file, to be spoiled."""
    return dict(model.state_dict()), {"format": FORMAT, "settings": json.dumps(model.settings), "metadata": "{}"}


def training_checkpoint(model: OPIR, **changes: object) -> dict[str, object]:
    """What Lightning writes with weight averaging: the averaged weights in ``state_dict``, the live ones beside it."""
    averaged = {f"net.{name}": value for name, value in model.state_dict().items()}
    live = {name: value + 1 if value.is_floating_point() else value for name, value in averaged.items()}
    return {
        "epoch": 3,
        "global_step": 40,
        "state_dict": {**averaged, "loss.scale": torch.ones(1)},
        "current_model_state": live,
        "model_settings": model.settings,
        **changes,
    }


def assert_same_network(got: OPIR, want: OPIR) -> None:
    image = torch.rand(1, 3, 21, 34, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for a, b in zip(got(image), want(image), strict=True):
            assert torch.equal(a, b)


def test_weights_come_back_with_settings_and_metadata(model, tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    save_weights(path, model, {"step": 20, "psnr": 27.5, "data": "demo"})
    got, header = load_model(path)
    assert_same_network(got, model)
    assert not got.training
    assert header == read_header(str(path)) == (FORMAT, model.settings, {"step": 20, "psnr": 27.5, "data": "demo"})
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_half_precision_weights_are_widened(model, tmp_path):
    tensors, header = parts(model)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    (tmp_path / "half.safetensors").write_bytes(safetensors.torch.save(halved, header))
    got, _ = load_model(tmp_path / "half.safetensors")
    for name, value in got.state_dict().items():
        assert value.dtype == tensors[name].dtype
        assert torch.equal(value, halved[name].to(value.dtype))


def test_weights_trained_with_a_named_backend_run_elsewhere(model, tmp_path):
    tensors, header = parts(model)
    header["settings"] = json.dumps({**model.settings, "backend": "triton"})
    (tmp_path / "m.safetensors").write_bytes(safetensors.torch.save(tensors, header))
    assert_same_network(load_model(tmp_path / "m.safetensors")[0], model)


def test_a_network_starts_from_the_weights_of_another(model, tmp_path):
    save_weights(tmp_path / "m.safetensors", model)
    net = OPIR.from_settings({**SETTINGS, "padding": "zeros"})
    start_from(net, tmp_path / "m.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)
    assert net.settings["padding"] == "zeros"


@pytest.mark.parametrize("older", [False, True])
def test_one_stage_starts_two_of_which_the_second_does_nothing_yet(older, model, tmp_path):
    torch.manual_seed(1)
    one = OPIR.from_settings({**SETTINGS, "stages": 1})
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1 * torch.rand(parameter.shape))
    if older:  # a file from before there was this setting; it is not taken for one that has to grow
        del one.settings["code_width"]
    save_weights(tmp_path / "one.safetensors", one)
    two = OPIR.from_settings(SETTINGS)
    start_from(two, tmp_path / "one.safetensors")
    image = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        restored, before = two.eval()(image), one.eval()(image)
    assert torch.equal(restored.coarse, before.coarse)
    assert not torch.equal(restored.coarse, image)
    torch.testing.assert_close(restored.refined, restored.coarse)


def test_weights_that_do_not_fit_are_refused_with_the_settings_that_differ(model, tmp_path):
    save_weights(tmp_path / "m.safetensors", model)
    with pytest.raises(UserError, match="kernel_size is 3 there and 5 here"):
        start_from(OPIR.from_settings({**SETTINGS, "kernel_size": 5}), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"m\.safetensors' cannot start this network: width is 4 there and 6 here"):
        start_from(OPIR.from_settings({**SETTINGS, "width": 6}), tmp_path / "m.safetensors")


def test_a_larger_network_starts_as_the_smaller_one_whose_weights_it_is_given(model, tmp_path):
    save_weights(tmp_path / "m.safetensors", model)
    large = OPIR.from_settings({**SETTINGS, "width": 12, "padding": "zeros"}).eval()
    start_from(large, tmp_path / "m.safetensors")
    image, small = torch.rand(1, 3, 32, 32), OPIR.from_settings({**SETTINGS, "padding": "zeros"}).eval()
    small.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(large(image).refined, small(image).refined, rtol=1e-4, atol=1e-5)


def test_a_training_checkpoint_gives_its_averaged_weights(model, tmp_path):
    torch.save(training_checkpoint(model), tmp_path / "last.ckpt")
    got, header = load_model(tmp_path / "last.ckpt")
    assert_same_network(got, model)
    assert header == ("lightning", model.settings, {"epoch": 3, "step": 40})


def test_a_run_folder_means_its_final_weights_then_its_last_checkpoint(model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save(training_checkpoint(model), tmp_path / "checkpoints" / "last.ckpt")
    assert find_weights(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"
    save_weights(tmp_path / "model.safetensors", model)
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"


def test_packaged_weights_are_found_by_name_and_listed_when_missing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_WEIGHTS_DIR", tmp_path)
    with pytest.raises(UserError, match="no weights come with this installation"):
        load_model("opir_small")
    save_weights(tmp_path / "opir_small.safetensors", model)
    write_sums(tmp_path)
    assert_same_network(load_model("opir_small")[0], model)
    with pytest.raises(UserError, match="no weights file 'opir_smal', and the packaged names are opir_small"):
        load_model("opir_smal")


def write_sums(folder: Path) -> None:
    """As ``sha256sum *.safetensors`` writes them."""
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in folder.glob("*.safetensors")]
    (folder / checkpoints.CHECKSUMS).write_text("".join(sums))


def test_packaged_weights_that_were_changed_are_refused_and_files_elsewhere_need_no_checksum(
    model, tmp_path, monkeypatch
):
    packaged, elsewhere = tmp_path / "weights", tmp_path / "mine.safetensors"
    monkeypatch.setattr(checkpoints, "_WEIGHTS_DIR", packaged)
    save_weights(packaged / "opir_small.safetensors", model)
    with pytest.raises(UserError, match="install the package again"):
        load_model("opir_small")
    write_sums(packaged)
    save_weights(packaged / "opir_small.safetensors", model, {"step": 7})
    with pytest.raises(UserError, match="install the package again"):
        read_header("opir_small")
    (packaged / "opir_small.safetensors").rename(elsewhere)
    assert_same_network(load_model(elsewhere)[0], model)


def test_the_weights_that_ship_tell_where_they_come_from():
    for name in checkpoints.available_weights():
        header = load_model(name)[1]
        assert {"commit", "experiment", "steps", "crops", "data", "psnr"} <= header.metadata.keys(), name
        assert all(len(pair) == 2 for pair in header.metadata["psnr"].values())


class Payload:
    """Unpickling this creates a file: code that runs if anything unpickles without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_file_with_code_in_it_is_refused_and_the_code_never_runs(model, tmp_path, suffix, write):
    path, marker = tmp_path / f"evil{suffix}", tmp_path / "ran"
    write(training_checkpoint(model, hyper_parameters=Payload(marker)), path)
    with pytest.raises(UserError, match="is not a"):
        load_model(path)
    assert not marker.exists()


def spoil_tensors(change):
    def write(model, path):
        tensors, header = parts(model)
        change(tensors)
        path.write_bytes(safetensors.torch.save(tensors, header))

    return write


def spoil_header(**changes):
    def write(model, path):
        tensors, header = parts(model)
        header = {key: value for key, value in {**header, **changes}.items() if value is not None}
        path.write_bytes(safetensors.torch.save(tensors, header or None))

    return write


def settings_with(**changes):
    return spoil_header(settings=json.dumps({**OPIR.from_settings(SETTINGS).settings, **changes}))


def truncated(model, path):
    save_weights(path, model)
    path.write_bytes(path.read_bytes()[:-100])


def announcing(length):
    return lambda model, path: path.write_bytes(struct.pack("<Q", length) + b"{" * 100)


def a_weight(tensors):
    return next(name for name in tensors if name.endswith("stem.weight"))


BAD_FILES = {
    "empty": (lambda model, path: path.write_bytes(b""), "not a complete safetensors file"),
    "truncated": (truncated, "not a complete safetensors file"),
    "huge header": (announcing(2**40), "its header would have 1099511627776 bytes"),
    "header beyond the file": (announcing(2**20), "not a complete safetensors file"),
    "no header": (spoil_header(format=None, settings=None, metadata=None), "says 'nothing'"),
    "another project": (spoil_header(format="pt"), "says 'pt'"),
    "a later format": (spoil_header(format="opir-lightning/2"), "says 'opir-lightning/2'"),
    "no settings": (spoil_header(settings=None), "settings or metadata are no JSON"),
    "settings no table": (spoil_header(settings="[1, 2]"), "settings are no table"),
    "metadata no table": (spoil_header(metadata="3"), "metadata are no table"),
    "deeply nested": (spoil_header(settings="[" * 100_000), "no JSON"),
    "a setting unknown": (settings_with(widht=4), "Did you mean 'width'"),
    "a setting of another kind": (settings_with(width="4"), "'width' is '4'"),
    "endless depth": (settings_with(middle_blocks=10**9), "'middle_blocks' adds up to more than 256"),
    "endless levels": (
        settings_with(encoder_blocks=[1] * 100, decoder_blocks=[1] * 100),
        "no network that can be built",
    ),
    "not a number": (settings_with(width=float("nan")), "adds up to more than"),
    "other width": (settings_with(width=8), r"has the shape \(4, 16, 3, 3\) and must be \(8, 16, 3, 3\)"),
    "a weight missing": (spoil_tensors(lambda t: t.pop(a_weight(t))), "lacks 1 weights, e.g. '.*stem.weight'"),
    "a weight too many": (
        spoil_tensors(lambda t: t.update(extra=torch.ones(1))),
        "has unknown 1 weights, e.g. 'extra'",
    ),
    "another dtype": (spoil_tensors(lambda t: t.update({a_weight(t): t[a_weight(t)].double()})), "is torch.float64"),
    "diverged": (spoil_tensors(lambda t: t.update({a_weight(t): t[a_weight(t)] * torch.nan})), "training diverged"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_weights_file_is_refused_in_one_sentence(model, tmp_path, case):
    write, reason = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    write(model, path)
    with pytest.raises(UserError, match=reason) as caught:
        load_model(path)
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_CHECKPOINTS = {
    "of another program": (lambda c: c.pop("model_settings"), "another program: it has no 'model_settings'"),
    "no weights": (lambda c: c.pop("state_dict"), "it has no 'state_dict'"),
    "no table of settings": (lambda c: c.update(model_settings=[1]), "settings are no table"),
    "another network": (lambda c: c.update(state_dict={"net.fc": torch.ones(1)}), "lacks"),
    "a sparse weight": (
        lambda c: c["state_dict"].update({f"net.{a_weight(c['state_dict'])[4:]}": torch.eye(3).to_sparse()}),
        "is no plain tensor",
    ),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_a_bad_training_checkpoint_is_refused_in_one_sentence(model, tmp_path, case):
    spoil, reason = BAD_CHECKPOINTS[case]
    checkpoint = training_checkpoint(model)
    spoil(checkpoint)
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=reason) as caught:
        load_model(tmp_path / "bad.ckpt")
    assert "\n" not in str(caught.value)


def test_a_truncated_training_checkpoint_is_refused(model, tmp_path):
    path = tmp_path / "cut.ckpt"
    torch.save(training_checkpoint(model), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        load_model(path)


def test_what_is_no_weights_file_is_named(model, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"x")
    for path, reason in (
        (tmp_path / "none.safetensors", "There is no weights file"),
        (tmp_path, "neither model.safetensors nor checkpoints/last.ckpt"),
        (tmp_path / "weights.pth", "must end in .safetensors or .ckpt"),
    ):
        with pytest.raises(UserError, match=reason):
            load_model(path)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        save_weights(tmp_path / "model.pth", model)


def test_without_its_package_the_hub_is_named_beside_the_missing_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    reason = r"no file or folder 'runs/rain', and models on the .* need .*: pip install 'opir-lightning\[hub\]'"
    with pytest.raises(UserError, match=reason):
        load_model("runs/rain")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path, opened_before = tmp_path / "model.safetensors", tmp_path / "link"
    write_atomically(path, b"older")
    opened_before.hardlink_to(path)
    write_atomically(path, b"old")
    assert opened_before.read_bytes() == b"older"  # replaced, never written into
    opened_before.unlink()

    def disk_full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
