"""What is allowed, case by case; and that no file of the package opens a door that the others keep shut."""

from __future__ import annotations

import ast
import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from malformed_pictures import chunk, good_files, png, zeros
from malformed_weights import checkpoint, network
from PIL import Image

import opir_lightning
from opir_lightning import hub
from opir_lightning.checkpoints import load_model, read_checkpoint, save_weights
from opir_lightning.comparison.settings import read_yaml, resolve
from opir_lightning.data.images import read_rgb
from opir_lightning.degradations.blur_kernels import read_kernels
from opir_lightning.errors import UserError
from opir_lightning.memory import Scratch
from opir_lightning.outside import check_plain, parse_json, printable
from opir_lightning.picture_files import read_picture, reading
from opir_lightning.restore import main
from opir_lightning.resume import find_progress

PACKAGE = Path(opir_lightning.__file__).parent


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """All calls of a file: what is called, as it is written, and the named arguments."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), {word.arg or "**": word.value for word in node.keywords}) for node in nodes]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_opens_no_door(path):
    for name, words in calls(path):
        assert name not in ("eval", "exec", "os.system", "os.popen", "__import__", "yaml.unsafe_load", "yaml.full_load")
        assert not name.startswith(("pickle.", "marshal.", "shelve.", "joblib.load", "torch.jit.load"))
        assert "shell" not in words, name
        said = {word: ast.unparse(value) for word, value in words.items()}
        if name == "torch.load":
            assert said.get("weights_only") == "True", name
        if name in ("np.load", "numpy.load"):
            assert said.get("allow_pickle") == "False", name
        if name == "Image.open":
            assert "formats" in said, name
        if name == "yaml.load":
            assert said.get("Loader") == "_PlainLoader", name
        if name.endswith("new_from_file"):
            raise AssertionError("libvips would choose the kind of the file by itself")


def test_a_picture_that_has_changed_is_read_anew(tmp_path):
    for suffix in ("png", "jpg", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        for level in (30, 200):
            Image.new("RGB", (20, 20), (level,) * 3).save(path)
            assert abs(int(read_picture(path).pixels[5, 5, 0]) - level) < 3


def test_a_small_file_that_would_be_a_large_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    few = chunk(b"IDAT", zeros(1))
    for name, side, reason in (("small", 9_000, "would become"), ("large", 20_000, "megapixels")):
        (tmp_path / f"{name}.png").write_bytes(png(side, side, few))
        with pytest.raises(UserError, match=f"{name}.png': .*{reason}"):
            read_picture(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match="would become"):
            read_picture(tmp_path / f"{name}.png", scratch=Scratch(tmp_path))
    monkeypatch.setattr(reading, "LARGE", 100)
    disk = namedtuple("disk", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(2000))
    (tmp_path / "a.png").write_bytes(good_files()["png"])
    with pytest.raises(UserError, match=r"needs 0.0 GiB beside the results, and .* has room for 0.0"):
        read_picture(tmp_path / "a.png", scratch=Scratch(tmp_path))


def test_pictures_are_what_they_say_or_another_picture(tmp_path):
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    (tmp_path / "a.png").write_bytes(drawing)
    with pytest.raises(UserError, match="its content is of no known kind"):
        read_picture(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(UserError, match="cannot identify"):
        read_rgb(tmp_path / "b.jpg")
    (tmp_path / "c.png").write_bytes(good_files()["jpg"])
    assert read_picture(tmp_path / "c.png").pixels.shape == (48, 48, 3)
    Image.new("L", (3000, 9), 5).save(tmp_path / "kernel.png")
    with pytest.raises(UserError, match="more than 1024 pixels on a side"):
        read_kernels([tmp_path / "kernel.png"])


def test_results_stay_in_their_folder_whatever_the_inputs_are_called(tmp_path, capsys):
    """A link in a folder is restored under its own name; a name that would move the cursor is shown in letters."""
    source, out, weights = tmp_path / "in", tmp_path / "out", tmp_path / "m.safetensors"
    save_weights(weights, network())
    (source / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere.png").write_bytes(good_files()["png"])
    (source / "sub" / "link.png").symlink_to("../../elsewhere.png")
    (source / "..png").write_bytes(good_files()["png"])  # hidden
    (source / "...png").write_bytes(good_files()["png"])
    (source / "C:\\con.png").write_bytes(good_files()["png"])
    (source / "\x1b[2J\n\r.png").write_bytes(b"no picture")
    (source / "caf\udce9.png").write_bytes(good_files()["png"])
    arguments = [source, "-o", out, "--weights", weights, "--device", "cpu", "--recursive"]
    assert main([*map(str, arguments)]) == 1
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {"sub/link.png", "C:\\con.png", "caf\udce9.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "m.safetensors", "elsewhere.png"}
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert "\\x1b[2J\\n\\r.png" in line
    assert "\x1b[2J" not in said


def test_plain_data_is_bounded():
    shared: list[object] = [1]
    for _ in range(40):
        shared = [shared, shared]
    circle: list[object] = []
    circle.append(circle)
    for wrong in (shared, circle, 2**63, [torch.ones(1)], {("a",): 1}, {1, 2}, b"x", [[0] * 1001] * 1000):
        with pytest.raises(ValueError, match=r"nested|more than|names"):
            check_plain(wrong)
    check_plain({"a": [1, -(2**63), 2.5, None, True, "x", (1, 2)], 3: float("nan")})
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for text in ('{"a": 1, "a": 2}', "[" * 5000, "[" * 50 + "]" * 50, "9" * 30, "x"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
    assert printable("a\x1b[2Jä\n\udce9\u202e") == "a\\x1b[2Jä\\n\\udce9\\u202e"


def test_references_of_a_configuration_do_not_unfold_without_end(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a0: x\n" + "".join(f'a{n}: "${{a{n - 1}}}${{a{n - 1}}}"\n' for n in range(1, 20)))
    config = read_yaml(path)
    assert resolve({name: config[name] for name in ("a0", "a1", "a2")})["a2"] == "xxxx"
    long = {f"b{n}": f"${{b{n - 1}}}" * 10 for n in range(1, 15)} | {"b0": "x"}
    with pytest.raises(UserError, match="fill the memory"):
        resolve(long)
    path.write_text("a: &a {b: 1}\nc: *a\n")  # as YAML is written where two settings are one object
    assert read_yaml(path)["c"] == {"b": 1}
    for text in ("a: &a {b: 1}\nc: {<<: *a}\n", "a: &a [*a]\n", "a: " + "9" * 50, "a: !!set {b}"):
        path.write_text(text)
        with pytest.raises(UserError, match="cannot be read as YAML"):
            read_yaml(path)


def test_a_checkpoint_to_go_on_from_is_plain_data_of_a_training(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "last.ckpt"
    torch.save(checkpoint(config={"a": 1}, loops={}), path)
    assert read_checkpoint(path)["epoch"] == 1
    assert find_progress({"a": 1, "run_dir": str(tmp_path)}).checkpoint == str(path)
    for broken in ({"config": None}, {"config": {"a": torch.ones(1)}}, {"config": [1]}):
        torch.save(checkpoint(**broken, loops={}), path)
        with pytest.raises(UserError, match=r"cannot be used|gone on with"):
            find_progress({"run_dir": str(tmp_path)})
    for text in ('{"meta": 3}', '{"meta": {"settings": [1]}}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match="other settings"):
            find_progress({"run_dir": str(tmp_path)})
    torch.save(checkpoint(config={"a": 1}, loops={}), path)
    for text in ("", "[]"):  # what is cut off is made anew
        (tmp_path / "results.json").write_text(text)
        assert find_progress({"a": 1, "run_dir": str(tmp_path)}) == (False, str(path), "")


def test_a_header_cannot_ask_for_a_network_beyond_measure(tmp_path):
    path = tmp_path / "m.safetensors"
    save_weights(path, network())
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for change, said in (
        ({"width": 3000, "middle_blocks": 9}, "weights, and 134217728 are allowed"),
        ({"features": 300}, "'features' adds up to more than 256"),
        ({"tasks": ["none", "\x1b[2J"]}, "cannot be printed"),
        ({"tasks": [["none"]]}, "neither a plain value nor a list"),
        ({"w\nidth": 1}, "no name of a setting"),
    ):
        header = json.loads(whole[8 : 8 + length])
        settings = json.loads(header["__metadata__"]["settings"]) | change
        header["__metadata__"]["settings"] = json.dumps(settings)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(UserError, match=said):
            load_model(path)


def test_a_revision_on_the_hub_is_no_path_out_of_its_cache():
    assert hub.parse_id("me/net@refs/pr/1") == ("me/net", "refs/pr/1")
    for text in ("me/net@../../../secret", "me/net@/etc/passwd", "me/net@a/../b", "../net", "me/../net"):
        assert hub.parse_id(text) is None


def test_sixteen_bits_of_grey_are_scaled_as_before(tmp_path):
    values = np.array([[0, 128, 129, 257, 65535, 65407]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_rgb(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255]
