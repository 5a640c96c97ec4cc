"""The restore command: names, formats, what it never overwrites, and what it says when something is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from small_networks import small_network

from opir_lightning.checkpoints import save_weights
from opir_lightning.restore import main
from opir_lightning.restorer import Restorer


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A network whose result is everywhere visibly brighter than its input, by an amount that depends on the task."""
    net = small_network(["none", "noise"], brighter=[0.1, 0.2])
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, net)
    return str(path)


def pixels(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray | Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(pixels() if image is None else image)
    picture.save(path, **options)
    return path


def run(weights: str, *arguments: object) -> int:
    return main([*map(str, arguments), "--weights", weights, "--device", "cpu"])


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def expected(weights: str, image: np.ndarray, **options: object) -> np.ndarray:
    return Restorer.from_pretrained(weights, device="cpu").restore_pixels(image, **options)[0]


def test_folders_are_mirrored_and_files_keep_their_names(weights, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    for index, name in enumerate(("b.png", "sub/a.PNG", "sub/deep/c.bmp")):
        write(source / name, pixels(index))
    (source / "notes.txt").write_text("no picture")
    write(source / ".hidden.png")
    single = write(tmp_path / "single.png", pixels(5))
    assert run(weights, source, single, "-o", out, "--recursive") == 0
    assert files(out) == ["b.png", "single.png", "sub/a.PNG", "sub/deep/c.bmp"]
    assert capsys.readouterr().out == f"4 restored, 0 already there, 0 failed; results in {out}\n"
    with Image.open(out / "sub/a.PNG") as result:
        assert np.array_equal(np.asarray(result), expected(weights, pixels(1)))
    assert np.abs(expected(weights, pixels(1)).astype(int) - pixels(1)).min() > 10  # the model does something


def test_without_recursive_only_the_folder_itself_is_read(weights, tmp_path):
    write(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "sub" / "b.png")
    assert run(weights, tmp_path / "in", "-o", tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["a.png"]


def test_finished_results_are_skipped_unless_overwritten(weights, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    write(source / "a.png")
    write(source / "b.png")
    out.mkdir()
    (out / "a.png").write_bytes(b"earlier")
    assert run(weights, source, "-o", out) == 0
    assert (out / "a.png").read_bytes() == b"earlier"
    assert "1 restored, 1 already there" in capsys.readouterr().out
    assert run(weights, source, "-o", out, "--overwrite") == 0
    assert (out / "a.png").read_bytes() != b"earlier"
    assert run(weights, source, "-o", out, "--compare") == 0  # a file asked for is missing: not finished
    assert files(out) == ["a.png", "a_compare.png", "b.png", "b_compare.png"]


def test_what_fails_is_named_and_the_rest_is_restored(weights, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    write(source / "good.png")
    cut = write(source / "cut.png")
    cut.write_bytes(cut.read_bytes()[:200])
    (source / "text.jpg").write_text("this is no picture")
    write(source / "moving.webp", append_images=[Image.new("RGB", (30, 20))], save_all=True)
    unknown = tmp_path / "film.gif"
    unknown.write_bytes(b"GIF89a")
    assert run(weights, source, unknown, tmp_path / "gone.png", "-o", out) == 1
    said = capsys.readouterr()
    assert said.out.startswith("1 restored, 0 already there, 5 failed")
    lines = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    for name, reason in (
        ("cut.png", "cannot be read as a picture"),
        ("text.jpg", "cannot be read as a picture"),
        ("moving.webp", "holds 2 pictures"),
        ("film.gif", "files of the kind '.gif' are not supported"),
        ("gone.png", "there is no such file or folder"),
    ):
        assert sum(line.count(name) == 1 and reason in line for line in lines) == 1, (name, said.err)
    assert "Traceback" not in said.err
    assert files(out) == ["good.png"]


def usage_error(weights: str, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        run(weights, *arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_inputs_are_never_overwritten(weights, tmp_path, capsys):
    picture = write(tmp_path / "in" / "a.png")
    before = picture.read_bytes()
    for arguments in ((picture, "-o", tmp_path / "in"), (tmp_path / "in", "-o", tmp_path / "in", "--overwrite")):
        assert "would overwrite an input" in usage_error(weights, capsys, *arguments)
    linked = tmp_path / "out" / "a.png"
    linked.parent.mkdir()
    linked.symlink_to(picture)
    assert "would overwrite an input" in usage_error(weights, capsys, picture, "-o", tmp_path / "out", "--overwrite")
    write(tmp_path / "in" / "a_compare.png")  # an input too: not to be replaced by the comparison of a.png
    assert "would overwrite" in usage_error(weights, capsys, tmp_path / "in", "-o", tmp_path / "in", "--compare")
    assert picture.read_bytes() == before


def test_two_inputs_for_one_result_are_refused_but_one_named_twice_is_fine(weights, tmp_path, capsys):
    first, second = write(tmp_path / "x" / "a.png"), write(tmp_path / "y" / "a.png")
    assert "would both write" in usage_error(weights, capsys, first, second, "-o", tmp_path / "out")
    both_kinds = [write(tmp_path / "z" / name) for name in ("a.png", "a.jpg")]
    assert "would both write" in usage_error(weights, capsys, *both_kinds, "-o", tmp_path / "out", "--compare")
    assert run(weights, first, first.parent, "-o", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("1 restored")


def test_results_inside_the_input_folder_are_not_restored_again(weights, tmp_path):
    source = tmp_path / "in"
    write(source / "a.png")
    for _ in range(2):
        assert run(weights, source, "-o", source / "restored", "--recursive") == 0
    assert files(source) == ["a.png", "restored/a.png"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["EMPTY", "-o", "OUT"], "holds no pictures"),
        (["a.png"], "-o/--output"),
        (["a.png", "-o", "FILE"], "is a file; -o needs a folder"),
        (["a.png", "-o", "OUT", "--tile", "0"], "'0' is neither 'auto' nor a positive number"),
        (["a.png", "-o", "OUT", "--overlap", "-3"], "overlap"),
        (["a.png", "-o", "OUT", "--device", "tpu"], "tpu"),
        (["a.png", "-o", "OUT", "--strength", "1.1"], "'1.1' is not a number from 0 to 1"),
    ],
)
def test_wrong_usage_ends_with_status_2(weights, tmp_path, capsys, arguments, reason):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("")
    arguments = [tmp_path / part if part in ("EMPTY", "OUT", "FILE") else part for part in arguments]
    assert reason in usage_error(weights, capsys, *arguments)


def test_unknown_tasks_and_missing_weights_are_one_sentence(weights, tmp_path, capsys):
    picture = write(tmp_path / "a.png")
    assert run(weights, picture, "-o", tmp_path / "out", "--task", "snow") == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("error: This model knows no task 'snow'; it knows none, noise")
    )
    assert main([str(picture), "-o", str(tmp_path / "out"), "--weights", "gone.safetensors"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no weights file 'gone.safetensors'")
    assert not (tmp_path / "out").exists()


def test_task_and_tiles_reach_the_model(weights, tmp_path):
    picture = write(tmp_path / "a.png", pixels(3, 60, 70))
    results = {}
    for name, options in {
        "none": ("--task", "none"),
        "noise": ("--task", "noise"),
        "tiled": ("--task", "noise", "--tile", "16", "--overlap", "64"),
    }.items():
        assert run(weights, picture, "-o", tmp_path / name, *options) == 0
        with Image.open(tmp_path / name / "a.png") as result:
            results[name] = np.asarray(result).astype(int)
        task = options[1]
        assert np.abs(results[name] - expected(weights, pixels(3, 60, 70), task=task)).max() <= 1
    assert np.abs(results["none"] - results["noise"]).max() > 10


def test_strength_0_gives_the_picture_back(weights, tmp_path):
    picture = write(tmp_path / "a.png")
    for strength in ("0", "0.5", "1"):
        assert run(weights, picture, "-o", tmp_path / strength, "--strength", strength) == 0
    none, half, full = (np.asarray(Image.open(tmp_path / s / "a.png")).astype(int) for s in ("0", "0.5", "1"))
    assert np.array_equal(none, pixels())
    assert np.abs(half - (none + full) / 2).max() <= 1  # this network's second stage changes nothing


def test_comparison_and_uncertainty_are_written_beside_the_result(weights, tmp_path):
    picture = write(tmp_path / "a.jpg", quality=95)
    assert run(weights, picture, "-o", tmp_path / "out", "--compare", "--uncertainty") == 0
    assert files(tmp_path / "out") == ["a.jpg", "a_compare.png", "a_uncertainty.png", "a_uncertainty.tiff"]
    with Image.open(picture) as before, Image.open(tmp_path / "out" / "a_compare.png") as both:
        original, pair = np.asarray(before.convert("RGB")), np.asarray(both)
    assert np.array_equal(pair[:, :30], original)
    assert np.array_equal(pair[:, -30:], expected(weights, original))
    with Image.open(tmp_path / "out" / "a_uncertainty.png") as doubt:
        assert doubt.size == (30, 20)
        assert doubt.text["Description"].startswith("Expected absolute error")
    with Image.open(tmp_path / "out" / "a_uncertainty.tiff") as values:
        want = Restorer.from_pretrained(weights, device="cpu")(original).uncertainty[0, 0].numpy()
        assert np.abs(np.asarray(values) - want).max() < 1e-6


def test_transparency_greyscale_and_profile_survive(weights, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    alpha = np.random.default_rng(1).integers(0, 256, (20, 30), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write(source / "alpha.png", np.dstack([pixels(), alpha]))
    write(source / "palette.png", Image.fromarray(pixels()).quantize(8), transparency=3)
    write(source / "grey.png", pixels()[..., 0])
    write(source / "profile.jpg", icc_profile=profile)
    assert run(weights, source, "-o", out) == 0
    with Image.open(out / "alpha.png") as result:
        assert result.mode == "RGBA"
        assert np.array_equal(np.asarray(result)[..., 3], alpha)
        assert np.array_equal(np.asarray(result)[..., :3], expected(weights, pixels()))
    with Image.open(out / "palette.png") as result, Image.open(source / "palette.png") as before:
        assert np.array_equal(np.asarray(result)[..., 3], np.asarray(before.convert("RGBA"))[..., 3])
    with Image.open(out / "grey.png") as result:
        assert result.mode == "L"
    with Image.open(out / "profile.jpg") as result:
        assert result.info["icc_profile"] == profile


def test_turned_photographs_come_out_upright_with_their_exif(weights, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    write(tmp_path / "turned.jpg", exif=exif)
    assert run(weights, tmp_path / "turned.jpg", "-o", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "turned.jpg") as result:
        assert result.size == (20, 30)
        assert result.getexif()[0x010F] == "Camera"
        assert result.getexif().get(0x0112, 1) == 1  # upright as it is, not to be turned once more


def test_of_a_phones_double_picture_the_first_is_restored(weights, tmp_path):
    picture = write(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert run(weights, picture, "-o", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "a.jpg") as result:
        assert (result.format, result.size) == ("JPEG", (30, 20))


def test_16_bits_stay_16_bits(weights, tmp_path):
    import cv2

    (tmp_path / "in").mkdir()
    deep = np.random.default_rng(4).integers(10000, 50000, (20, 30, 4), dtype=np.uint16)
    for name in ("colour.png", "colour.tif"):
        cv2.imwrite(str(tmp_path / "in" / name), deep[..., :3])
    cv2.imwrite(str(tmp_path / "in" / "alpha.png"), deep)
    cv2.imwrite(str(tmp_path / "in" / "grey.png"), deep[..., 0])
    for strength in ("0", "1"):
        assert run(weights, tmp_path / "in", "-o", tmp_path / strength, "--strength", strength) == 0
        for name in files(tmp_path / "in"):
            before, after = (cv2.imread(str(tmp_path / f / name), cv2.IMREAD_UNCHANGED) for f in ("in", strength))
            assert (after.dtype, after.shape) == (np.uint16, before.shape), name
            assert np.array_equal(after, before) == (strength == "0"), name
    alpha = cv2.imread(str(tmp_path / "1" / "alpha.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(alpha[..., 3], deep[..., 3])
    result = cv2.imread(str(tmp_path / "1" / "colour.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    want = Restorer.from_pretrained(weights, device="cpu")(deep[..., 2::-1] / 65535).refined[0].permute(1, 2, 0)
    assert np.abs(result / 65535 - want.numpy()).max() < 2e-5  # and not 8 bits on the way: that would be 2e-3


def test_inks_palettes_and_bits_become_colours_and_greys(weights, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    colours = Image.fromarray(pixels())
    write(source / "inks.jpg", colours.convert("CMYK"), quality=100)
    write(source / "palette.png", colours.quantize(8))
    write(source / "bits.png", colours.convert("1"))
    assert run(weights, source, "-o", out, "--strength", "0") == 0
    for name, mode in (("inks.jpg", "RGB"), ("palette.png", "RGB"), ("bits.png", "L")):
        with Image.open(out / name) as result, Image.open(source / name) as before:
            assert (result.mode, result.size) == (mode, before.size)
            if name != "inks.jpg":
                assert np.array_equal(np.asarray(result), np.asarray(before.convert(mode)))


def test_results_can_have_another_format_and_quality(weights, tmp_path, capsys):
    picture = write(tmp_path / "a.png", np.dstack([pixels(), pixels()[..., 0]]))
    sizes = {}
    for kind, quality in (("jpg", "95"), ("jpg", "20"), ("webp", "90"), ("tif", "90"), ("bmp", "90")):
        out = tmp_path / f"{kind}{quality}"
        assert run(weights, picture, "-o", out, "--format", kind, "--quality", quality) == 0
        assert files(out) == [f"a.{kind}"]
        with Image.open(out / f"a.{kind}") as result:
            assert result.size == (30, 20)
            assert result.mode == ("RGBA" if kind in ("webp", "tif") else "RGB")
            if kind == "bmp":  # without transparency: on white
                colours = expected(weights, pixels()).astype(float)
                white = 255 - pixels()[..., :1] / 255 * (255 - colours)
                assert np.abs(np.asarray(result) - white).max() <= 1
        sizes[kind + quality] = (out / f"a.{kind}").stat().st_size
    assert sizes["jpg20"] < sizes["jpg95"] / 2
    assert "not a number from 1 to 100" in usage_error(weights, capsys, picture, "-o", tmp_path, "--quality", "0")


def test_a_picture_too_large_for_memory_is_reported_and_the_rest_is_restored(weights, tmp_path, capsys, monkeypatch):
    write(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "b.png", pixels(1))
    real = Restorer.restore_pixels

    def full(self, image, **options):
        if np.array_equal(image, pixels()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(self, image, **options)

    monkeypatch.setattr(Restorer, "restore_pixels", full)
    assert run(weights, tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "a.png: not enough memory, even for tiles of 64 pixels" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["b.png"]


def test_tiles_that_do_not_fit_into_memory_become_smaller(weights, tmp_path, monkeypatch):
    large = pixels(2, 300, 200)
    write(tmp_path / "a.png", large)
    real, tried = Restorer.restore_pixels, []

    def scarce(self, image, **options):
        tried.append(options["tile"])
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(self, image, **options)

    monkeypatch.setattr(Restorer, "restore_pixels", scarce)
    assert run(weights, tmp_path / "a.png", "-o", tmp_path / "out") == 0
    assert tried == [None, 150, 75]
    monkeypatch.undo()
    with Image.open(tmp_path / "out" / "a.png") as result:
        assert np.abs(np.asarray(result).astype(int) - expected(weights, large)).max() <= 1


CHECK_MODULES = """
import sys
from opir_lightning.restore import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
print("status", status, sorted({"lightning", "hydra", "omegaconf", "wandb", "torch"} & set(sys.modules)))
"""


def test_help_imports_nothing_heavy_and_restoring_neither_lightning_nor_hydra(weights, tmp_path):
    def last_line(*arguments: str) -> str:
        command = [sys.executable, "-c", CHECK_MODULES, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]

    assert last_line("--help") == "status 0 []"
    picture = write(tmp_path / "a.png")
    assert last_line(str(picture), "-o", str(tmp_path / "out"), "--weights", weights) == "status 0 ['torch']"


def test_a_tiff_beyond_what_a_usual_one_can_hold_is_a_big_one(weights, tmp_path, monkeypatch):
    assert run(weights, write(tmp_path / "a.tif"), "-o", tmp_path / "usual", "--uncertainty") == 0
    monkeypatch.setattr("opir_lightning.picture_files.writing.LARGEST_USUAL_TIFF", 1000)
    assert run(weights, tmp_path / "a.tif", "-o", tmp_path / "big", "--uncertainty") == 0
    for name in ("a.tif", "a_uncertainty.tiff"):
        usual, big = ((tmp_path / folder / name).read_bytes() for folder in ("usual", "big"))
        assert (usual[2], big[2]) == (42, 43)  # by which a reader tells them apart
    with Image.open(tmp_path / "usual" / "a.tif") as one, Image.open(tmp_path / "big" / "a.tif") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_the_folder_of_the_pictures_is_not_that_of_the_results(weights, tmp_path, capsys):
    write(tmp_path / "in" / "a.jpg")
    with pytest.raises(SystemExit, match="2"):
        run(weights, tmp_path / "in", "-o", tmp_path / "in", "--format", "png")
    assert "would be taken for pictures the next time" in capsys.readouterr().err
    assert files(tmp_path / "in") == ["a.jpg"]


def test_colours_that_cannot_be_kept_are_told_before_anything_is_done(weights, tmp_path, capsys, monkeypatch):
    write(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    chunk = b"gAMA" + (100_000).to_bytes(4, "big")
    chunk = (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    with monkeypatch.context() as patch:
        patch.setattr(Restorer, "restore_pixels", None)
        arguments = (tmp_path / "a.png", "-o", tmp_path / "out", "--format", "jpg", "--compare")
        assert run(weights, *arguments) == 1
    assert "by its chunk gAMA" in capsys.readouterr().err
    assert files(tmp_path / "out") == []
    assert run(weights, tmp_path / "a.png", "-o", tmp_path / "out") == 0


def test_links_in_a_circle_are_named_and_an_interruption_while_planning_is_one(weights, tmp_path, capsys, monkeypatch):
    write(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "in" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "out" / "a.png")
    assert run(weights, tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "b.png: the link leads nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out" / "a.png").is_symlink()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("opir_lightning.restore.plan", interrupted)
    assert run(weights, tmp_path / "in", "-o", tmp_path / "out") == 130


def test_links_to_folders_are_followed_and_no_folder_is_restored_twice(weights, tmp_path, capsys):
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for path in (
        source / "z" / "1.png",
        source / ".thumbnails" / "2.png",
        elsewhere / "3.png",
        elsewhere / "sub/4.png",
    ):
        write(path)
    (source / "a").symlink_to(source / "z")
    (source / "b").symlink_to(elsewhere)
    (source / "z" / "up").symlink_to(source)
    (elsewhere / "sub" / "back").symlink_to(source / "z")
    assert run(weights, source, "-o", tmp_path / "out", "--recursive") == 0
    assert files(tmp_path / "out") == ["b/3.png", "b/sub/4.png", "z/1.png"]


def test_an_empty_name_of_weights_is_not_the_default(tmp_path, capsys):
    assert main([str(write(tmp_path / "a.png")), "-o", str(tmp_path / "out"), "--weights", ""]) == 1
    assert "error: The folder '.' holds neither" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_command_that_is_told_to_end_leaves_nothing_half_written(weights, tmp_path, name, status):
    write(tmp_path / "a.png", pixels(0, 3000, 3000))
    leftover = tmp_path / "out" / f".{'0' * 16}.tmp"
    fresh = tmp_path / "out" / f".{'1' * 16}.tmp"
    write(tmp_path / "out" / "x.png")
    for path in (leftover, fresh):
        path.write_bytes(b"of a writer that was killed")
    os.utime(leftover, (0, 0))
    command = [
        sys.executable,
        "-m",
        "opir_lightning.restore",
        tmp_path / "a.png",
        "-o",
        tmp_path / "out",
        "--tile",
        "64",
    ]
    running = subprocess.Popen([*command, "--weights", weights, "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    while leftover.exists() and running.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    running.send_signal(getattr(signal, name))
    _, said = running.communicate()
    assert running.returncode == status
    assert "interrupted; the same command continues where it stopped" in said
    assert "Traceback" not in said
    assert files(tmp_path / "out") == [fresh.name, "x.png"]


def test_a_name_that_is_too_long_is_one_sentence(weights, tmp_path, capsys):
    write(tmp_path / "a.png")
    assert run(weights, "x" * 300, tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert "failed: " + "x" * 300 in capsys.readouterr().err
    assert files(tmp_path / "out") == ["a.png"]
    assert run(weights, tmp_path / "a.png", "-o", tmp_path / ("x" * 300)) == 1
    assert "File name too long" in capsys.readouterr().err
    assert main([str(tmp_path / "a.png"), "-o", str(tmp_path / "more"), "--weights", "x" * 300]) == 1
    assert "error: There is no weights file" in capsys.readouterr().err


def test_float32_is_not_rounded_to_fewer_bits_on_a_gpu(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert run(weights, write(tmp_path / "a.png"), "-o", tmp_path / "out") == 0
    assert not torch.backends.cudnn.allow_tf32
