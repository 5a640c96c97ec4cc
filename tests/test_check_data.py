"""check_data: a good folder passes; each kind of fault is named and the status is 1."""

from __future__ import annotations

import itertools
import os
import sys

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from opir_lightning.check_data import check_data, find_sets, main
from opir_lightning.config import config_dir, register_schemas
from opir_lightning.data.inspection import look_at, psnr
from opir_lightning.data.overlaps import ORIENTATIONS, find_overlaps, oriented, thumbnail
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.errors import UserError
from opir_lightning.presets import _preset, suggest_layout

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


def run(root, capsys, monkeypatch, *overrides: str) -> tuple[int, str, str]:
    """The command itself, in this process, which saves the seconds that the imports take: status and what it said."""
    monkeypatch.setattr(sys, "argv", ["check_data", f"data.root={root}", *overrides])
    status = 0
    try:
        main()
    except SystemExit as left:
        status = left.code
    finally:
        GlobalHydra.instance().clear()
    return status, *capsys.readouterr()


def check(root, capsys, *overrides: str) -> tuple[int, str]:
    """What the command calls: status and what was printed."""
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("check_data", [f"data.root={root}", "run_dir=.", *overrides])
    return check_data(config), capsys.readouterr().out


def faults_in(said: str) -> list[str]:
    return [line.removeprefix("fault: ") for line in said.splitlines() if line.startswith("fault: ")]


def assert_exactly(faults: list[str], expected: list[str]) -> None:
    """Each beginning is that of one fault, and there are no others."""
    for start in expected:
        assert sum(fault.startswith(start) for fault in faults) == 1, (start, faults)
    assert len(faults) == len(expected), faults


def test_a_good_folder_passes_and_is_counted(tmp_path, capsys):
    good_root(tmp_path)
    status, said = check(tmp_path, capsys)
    assert status == 0, said
    assert "9 pictures in 3 sets" in said
    assert "no faults" in said
    assert "3 of 13712" in said
    assert "Rain100L" in said.split("not found:")[1]


def test_every_fault_of_a_damaged_copy_is_named(tmp_path, capsys, monkeypatch):
    good_root(tmp_path)
    pairs, clean = tmp_path / "Rain13K-train", tmp_path / "BSD400"
    whole = (clean / "0.png").read_bytes()
    (clean / "0.png").write_bytes(whole[: len(whole) // 2])
    (clean / "notes.png").write_text("not a picture")
    (clean / "nothing.png").write_bytes(b"")
    save(pixels(9)[..., 0], clean / "grey.png")
    save((255 - pixels(9)[..., 0]).astype(np.uint16) * 257, clean / "deep.png")
    (pairs / "target" / "3.png").unlink()
    save(pixels(4)[:-2], pairs / "input" / "4.png")
    save(np.rot90(pixels(6)), clean / "turned.png")
    save(pixels(7)[:, ::-1], clean / "flipped.jpg", quality=60)
    status, said, _ = run(tmp_path, capsys, monkeypatch)
    assert status == 1
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
    assert_exactly(faults_in(said), expected)


def test_a_set_that_is_grey_throughout_is_said_to_be_so_and_passes(tmp_path, capsys):
    good_root(tmp_path)
    for number in (0, 1):
        save(255 - pixels(number)[..., 0], tmp_path / "WED" / f"{number}.png")
    status, said = check(tmp_path, capsys)
    assert status == 0, said
    assert "2 of 4744, all grey" in said
    save(255 - pixels(2), tmp_path / "WED" / "2.png")
    assert_exactly(faults_in(check(tmp_path, capsys)[1]), [f"WED/{n}.png is greyscale" for n in (0, 1)])


def test_odd_files_are_named_and_good_ones_with_odd_names_pass(tmp_path, capsys):
    good_root(tmp_path)
    clean, pairs = tmp_path / "BSD400", tmp_path / "Rain13K-train"
    save(255 - pixels(9), clean / "Köln im Regen.png")
    (clean / "round.png").symlink_to("round.png")
    (clean / "gone.png").symlink_to("nowhere.png")
    (clean / "all").symlink_to(tmp_path)
    frames = [Image.fromarray(pixels(number, (32, 32))) for number in (2, 3)]
    with (clean / "moving.png").open("wb") as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    Image.fromarray(255 - pixels(0)).convert("CMYK").save(clean / "print.jpg")
    turned, upside_down = Image.Exif(), Image.Exif()
    turned[0x0112], upside_down[0x0112] = 6, 3
    save(255 - pixels(1), clean / "phone.jpg", exif=turned)
    save(255 - pixels(4), pairs / "input" / "4.png", exif=upside_down)
    (tmp_path / "WED").mkdir()
    status, said = check(tmp_path, capsys)
    assert status == 1
    expected = [
        "BSD400/round.png is a link that leads nowhere",
        "BSD400/gone.png is a link that leads nowhere",
        "BSD400/moving.png is a file of 2 pictures",
        "BSD400/print.jpg is CMYK",
        "BSD400/phone.jpg is stored turned or mirrored: its EXIF orientation, 6,",
        "Rain13K-train/input/4.png has the EXIF orientation 3 and its clean partner Rain13K-train/target/4.png 1",
        "WED: the folder holds no pictures",
    ]
    assert_exactly(faults_in(said), expected)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    save(pixels(0), tmp_path / "locked.png")
    monkeypatch.setattr(Image, "open", refuse)
    scene = look_at(tmp_path / "locked.png", [], tmp_path)
    assert scene.faults == ["locked.png cannot be read: Permission denied"]


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, capsys, monkeypatch):
    def refuse(folder, *_):
        raise PermissionError(13, "Permission denied", str(folder))

    good_root(tmp_path)
    monkeypatch.setattr("opir_lightning.data.inspection.list_images", refuse)
    status, said = check(tmp_path, capsys)
    assert status == 1
    assert any(fault.startswith("CBSD68: ") and "Permission denied" in fault for fault in faults_in(said))


def test_a_name_that_is_no_utf8_is_printed_escaped(tmp_path):
    name = os.fsdecode("Köln.png".encode("latin-1"))
    try:
        (tmp_path / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert look_at(tmp_path / name, [], tmp_path).faults == ["K\\xf6ln.png cannot be read: the file is empty"]


def test_more_pictures_than_were_published_is_a_fault(tmp_path, capsys):
    good_root(tmp_path)
    for number in range(6):
        save(255 - pixels(number), tmp_path / "Set5" / f"{number}.png")
    status, said = check(tmp_path, capsys, "data.train={}")
    assert status == 1
    assert_exactly(faults_in(said), ["Set5 holds 6 pictures, and only 5 were published"])


def test_training_sets_of_other_tasks_are_mentioned(tmp_path, capsys):
    good_root(tmp_path)
    _, said = check(tmp_path, capsys, "experiment=noise")
    assert "not trained on, being of none of the tasks none, noise: Rain13K-train (rain)" in said
    _, said = check(tmp_path, capsys, "experiment=rain")
    assert "not trained on" not in said


def promptir_root(root) -> None:
    for number in range(3):
        save(pixels(number), root / "Train" / "Denoise" / f"{number}.png")
        save(pixels(number + 3), root / "test" / "derain" / "Rain100L" / "target" / f"{number}.png")
        save(255 - pixels(number + 3), root / "test" / "derain" / "Rain100L" / "input" / f"{number}.png")


PROMPTIR = "This looks like the layout of 'promptir': 2 of its 12 sets are there; run again with data=promptir"


def test_the_preset_that_fits_a_folder_is_named(tmp_path, capsys):
    promptir_root(tmp_path)
    with pytest.raises(UserError, match=f"{PROMPTIR} benchmark=promptir"):
        check(tmp_path, capsys)
    # A test set of the chosen layout is there, but nothing to train on: checked, and still said.
    save(pixels(9), tmp_path / "McMaster" / "9.png")
    _, said = check(tmp_path, capsys)
    assert f"{PROMPTIR} benchmark=promptir." in said
    assert "no training set was found" in said
    (tmp_path / "McMaster" / "9.png").unlink()
    _, said = check(tmp_path, capsys, "data=promptir")  # the benchmark was forgotten
    assert f"{PROMPTIR} benchmark=promptir." in said
    _, said = check(tmp_path, capsys, "data=promptir", "benchmark=promptir")
    assert "looks like" not in said
    assert "no training set" not in said


def test_the_command_names_the_preset_that_fits_where_it_finds_nothing(tmp_path, capsys, monkeypatch):
    promptir_root(tmp_path)
    _preset.cache_clear()  # composing inside of the command is part of what is tested
    status, _, error = run(tmp_path, capsys, monkeypatch)
    assert status == 1
    assert error.startswith("error: None of the sets was found")
    assert f"{PROMPTIR} benchmark=promptir." in error
    assert run(tmp_path, capsys, monkeypatch, "data=promptir", "benchmark=promptir")[0] == 0


def test_the_suggestion_for_a_training_names_no_benchmark_and_only_what_is_better(tmp_path):
    promptir_root(tmp_path)
    said = suggest_layout(tmp_path, roles=["train"])
    assert said.endswith("1 of its 5 sets is there; run again with data=promptir.")
    assert suggest_layout(tmp_path, found=1, roles=["train"]) == ""


def test_a_missing_root_and_one_without_sets_are_said(tmp_path):
    sources = {"data": {"root": str(tmp_path / "no"), "train": {}, "val": {}}, "benchmark": {"sets": {}}}
    with pytest.raises(UserError, match="does not exist"):
        find_sets(sources)
    sources["data"]["root"] = str(tmp_path)
    with pytest.raises(UserError, match=r"None of the sets was found in '[^']*'; expected [^.]*\.$"):
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
