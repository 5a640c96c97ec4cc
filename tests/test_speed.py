"""The speed study: what it times, what it compares, and what it says of wrong arguments."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "speed"


def study(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"speed_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    return study("bench")


@pytest.fixture
def networks(tmp_path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "beside.py").write_text("SCALE = 2.0\n")
    (tmp_path / "mine" / "net.py").write_text(
        "import torch\nfrom beside import SCALE\n\n\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width=3):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, width, 1)\n\n"
        "    def forward(self, image, text=None):\n"
        "        import lazily  # as einops does\n"
        "        y = self.conv(image) * SCALE\n"
        "        return [y if text is None else y + text.mean((1, 2))[:, None, None, None], None]\n\n\n"
        "def make(**keywords):\n"
        "    return Net(**keywords)\n"
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "lazily.py").write_text("")
    return tmp_path


def test_any_module_is_timed_by_file_or_by_dotted_name(bench, networks, capsys, monkeypatch):
    timed = bench.seconds
    monkeypatch.setattr(bench, "seconds", lambda run, device, least: timed(run, device, least / 20))
    file, output = networks / "mine" / "net.py", networks / "out.json"
    arguments = [
        "--variants",
        "--path",
        str(networks / "more"),
        "--against",
        "made",
        "--rounds",
        "2",
        "-o",
        str(output),
    ]
    arguments += ["--module", f"{file}:Net", "--module", f'made={file}:make:{{"width":3}}:[[5,2]]']
    arguments += ["--module", 'plain=torch.nn:Conv2d:{"in_channels":3,"out_channels":3,"kernel_size":1}']
    bench.main([*arguments, "--restore", "8", "--train", "2x8"])
    results = json.loads(output.read_text())
    assert results["against"] == "made"
    assert {name: of["parameters"] for name, of in results["networks"].items()} == {"Net": 12, "made": 12, "plain": 12}
    assert str(networks) not in output.read_text()
    for case in ("restore 8x8", "train 2 x 8x8"):
        rows = results["cases"][case]
        assert list(rows) == ["Net", "made", "plain"]
        assert rows["made"]["times_as_fast"] == 1
        for row in rows.values():
            assert len(row["rounds"]) == 2
            assert row["fastest"] <= row["seconds"] <= row["slowest"]
    assert "| restore 8x8 | made, 0.00 M |" in capsys.readouterr().out


def test_the_ratio_is_how_many_times_as_fast(bench, monkeypatch):
    monkeypatch.setattr(bench, "seconds", lambda run, device, least: run())
    rows = bench.compare({"quick": lambda: 0.5, "slow": lambda: 2.0}, 3, "cpu", "slow")
    assert rows["quick"]["times_as_fast"] == 4
    assert rows["slow"]["times_as_fast"] == 1


def test_further_inputs_and_keywords_reach_the_network(bench, networks):
    sys.path.append(str(networks / "more"))
    _, timed = bench.foreign(f'{networks / "mine" / "net.py"}:make:{{"width": 3}}:[[5, 2]]')
    (text,) = timed.others(2, "cpu")
    assert text.shape == (2, 5, 2)
    image = torch.rand(2, 3, 4, 4)
    assert (timed(image, text) - timed(image)).abs().min() > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing.py", "must be"),
        ("nothing.py:Net", "no file"),
        ("torch.nn:Nothing", "has no 'Nothing'"),
        ("torch.nn:Identity:{", "no JSON"),
        ("torch.nn:Identity:[1]", "table of keywords"),
    ],
)
def test_wrong_modules_are_named(bench, text, said):
    with pytest.raises(SystemExit, match=said):
        bench.foreign(text)


def test_two_networks_of_one_name_are_refused(bench):
    with pytest.raises(SystemExit, match="two networks are called 'Identity'"):
        bench.main(["--variants", "--module", "torch.nn:Identity", "--module", "torch.nn:Identity"])


def test_pictures_are_cut_or_enlarged_to_size(tmp_path):
    export_table = study("export_table")
    photographs = export_table.embedded()
    assert len(photographs) == 14
    assert export_table.picture(photographs[0], "256x128").shape == (1, 3, 128, 256)
    large = export_table.picture(photographs[0], "1024x768")
    assert large.shape == (1, 3, 768, 1024)
    assert np.abs(large * 255 - (large * 255).round()).max() < 1e-4
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "a.png")
    whole = export_table.picture(tmp_path / "a.png", "whole")
    assert np.array_equal((whole[0].transpose(1, 2, 0) * 255).round().ravel(), np.arange(48))
    assert np.array_equal(export_table.picture(tmp_path / "a.png", "2x2"), whole[:, :, 1:3, 1:3])
    assert export_table.chosen([tmp_path, photographs[0]], 4) == [tmp_path / "a.png", photographs[0]]


def test_a_result_that_differs_or_is_no_number_does_not_fit():
    export_table = study("export_table")
    fine = dict.fromkeys(export_table.OUTPUTS, 1e-5)
    assert export_table.fits({"largest_difference": fine})
    for bad in (2e-4, float("nan")):
        assert not export_table.fits({"largest_difference": fine | {"refined": bad}})
