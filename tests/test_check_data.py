"""check_data: a good folder passes; each kind of fault is named and the status is 1."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from opir_lightning.check_data import check_data, find_sets
from opir_lightning.config import config_dir, register_schemas
from opir_lightning.data.inspection import psnr
from opir_lightning.data.overlaps import ORIENTATIONS, find_overlaps, oriented, thumbnail
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.errors import UserError

PHOTOGRAPHS = sorted((EMBEDDED / "train").glob("*.jpg"))


def pixels(number: int, size: tuple[int, int] = (120, 96)) -> np.ndarray:
    """An embedded photograph, ``(H, W, 3)`` uint8; size is width and height."""
    with Image.open(PHOTOGRAPHS[number]) as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX))


def save(array: np.ndarray, path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def good_root(root) -> None:
    """Clean pictures to train on, pairs of rain, and a test set of other photographs."""
    for number in range(3):
        save(pixels(number), root / "BSD400" / f"{number}.png")
    for number in range(3, 6):
        save(pixels(number), root / "Rain13K-train" / "target" / f"{number}.png")
        save(255 - pixels(number), root / "Rain13K-train" / "input" / f"{number}.png")
    for number in range(6, 9):
        save(pixels(number), root / "CBSD68" / f"{number}.png")


def run(root) -> tuple[int, str]:
    command = [sys.executable, "-m", "opir_lightning.check_data", f"data.root={root}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_a_good_folder_passes_and_is_counted(tmp_path, capsys):
    good_root(tmp_path)
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("check_data", [f"data.root={tmp_path}", "run_dir=."])
    status = check_data(config)
    said = capsys.readouterr().out
    assert status == 0, said
    assert "9 pictures in 3 sets" in said
    assert "no faults" in said
    assert "3 of 13712" in said
    assert "Rain100L" in said.split("not found:")[1]


def test_every_fault_of_a_damaged_copy_is_named(tmp_path):
    good_root(tmp_path)
    pairs, clean = tmp_path / "Rain13K-train", tmp_path / "BSD400"
    whole = (clean / "0.png").read_bytes()
    (clean / "0.png").write_bytes(whole[: len(whole) // 2])
    (clean / "notes.png").write_text("not a picture")
    (clean / "nothing.png").write_bytes(b"")
    save(pixels(9)[..., 0], clean / "grey.png")
    save(pixels(9)[..., 0].astype(np.uint16) * 257, clean / "deep.png")
    (pairs / "target" / "3.png").unlink()
    save(pixels(4)[:-2], pairs / "input" / "4.png")
    save(np.rot90(pixels(6)), clean / "turned.png")
    save(pixels(7)[:, ::-1], clean / "flipped.jpg", quality=60)
    status, said = run(tmp_path)
    assert status == 1
    faults = [line.removeprefix("fault: ") for line in said.splitlines() if line.startswith("fault: ")]
    expected = [
        "BSD400/0.png cannot be read",
        "BSD400/notes.png cannot be read: its content is no picture",
        "BSD400/nothing.png cannot be read: the file is empty",
        "BSD400/grey.png is greyscale, not 8-bit RGB",
        "BSD400/deep.png is greyscale of 16 bits",
        "Rain13K-train/input/3.png has no clean partner",
        "Rain13K-train/input/4.png is 120x94 and its clean partner",
        "train BSD400/turned.png is test CBSD68/6.png (rotated 90)",
        "train BSD400/flipped.jpg is test CBSD68/7.png (flipped left-right)",
    ]
    for start in expected:
        assert sum(fault.startswith(start) for fault in faults) == 1, (start, faults)
    assert len(faults) == len(expected), faults


def test_a_missing_root_and_one_without_sets_are_said(tmp_path):
    sources = {"data": {"root": str(tmp_path / "no"), "train": {}, "val": {}}, "benchmark": {"sets": {}}}
    with pytest.raises(UserError, match="does not exist"):
        find_sets(sources)
    sources["data"]["root"] = str(tmp_path)
    with pytest.raises(UserError, match="None of the sets was found"):
        find_sets(sources)


@pytest.mark.parametrize("orientation", range(8))
def test_a_picture_is_found_in_every_orientation_and_no_other_is(orientation):
    originals = {str(n): thumbnail(pixels(n, (160, 120))) for n in range(len(PHOTOGRAPHS))}
    turned = {name: oriented(small[None])[0, orientation] for name, small in originals.items()}
    overlaps = find_overlaps(turned, originals)
    assert [(one.first, one.second) for one in overlaps] == [(name, name) for name in originals]
    assert {one.orientation for one in overlaps} == {ORIENTATIONS[orientation]}


def test_different_photographs_are_never_the_same():
    small = {path.name: thumbnail(pixels(n, (90, 90))) for n, path in enumerate(PHOTOGRAPHS)}
    for (a, one), (b, other) in itertools.combinations(small.items(), 2):
        assert find_overlaps({a: one}, {b: other}) == []


def test_psnr_by_hand():
    clean = np.zeros((4, 5, 3), np.uint8)
    assert psnr(clean + 51, clean) == pytest.approx(13.9794)  # a fifth of the range: 20 log10 5
    assert psnr(clean, clean) == float("inf")
