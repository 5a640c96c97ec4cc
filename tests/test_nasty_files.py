"""A folder as people have it: forty files of every kind, and what comes out of each. One run of the command for all."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms
from small_networks import small_network

from opir_lightning.checkpoints import save_weights
from opir_lightning.restore import main

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/"/><?xpacket end="w"?>'
SIZE = (45, 32)  # width and height


def exif(**more: object) -> Image.Exif:
    data = Image.Exif()
    data[0x010F], data[0x8298] = "Camera", "A. Photographer"
    for tag, value in more.items():
        data[int(tag[1:], 16)] = value
    return data


def smooth(width: int = SIZE[0], height: int = SIZE[1], channels: int = 3, top: int = 255) -> np.ndarray:
    """``(H, W, C)``: ramps with a little noise."""
    rng = np.random.default_rng(width * height)
    y, x = np.mgrid[0:height, 0:width]
    ramps = [(x * (c + 1) + y * (channels - c)) / (width * (c + 1) + height * (channels - c)) for c in range(channels)]
    values = 0.2 + 0.5 * np.stack(ramps, 2) + rng.uniform(0, 0.1, (height, width, channels))
    return (values * top).round().astype(np.uint16 if top > 255 else np.uint8)


def make(folder: Path) -> dict[str, str]:
    """Write the files; returns the reason to be named by the name of what cannot be restored."""
    folder.mkdir()
    colours, deep = Image.fromarray(smooth()), smooth(top=65535)
    alpha = Image.fromarray(smooth(channels=4))

    def save(name: str, image: Image.Image, **options: object) -> None:
        image.save(folder / name, **options)

    def save_deep(name: str, channels: int) -> None:
        array = smooth(channels=channels, top=65535)
        cv2.imwrite(str(folder / name), array[..., 0] if channels == 1 else array)

    # Sizes
    save("one pixel.png", Image.new("RGB", (1, 1), (90, 120, 150)))
    save("narrow.png", Image.fromarray(smooth(3, 5000)))
    save("flat.jpg", Image.fromarray(smooth(700, 1)))
    # Depths and modes
    save("grey.png", colours.convert("L"))
    save("grey.jpg", colours.convert("L"))
    save("grey and alpha.png", alpha.convert("LA"))
    save("alpha.png", alpha)
    save_deep("deep grey.png", 1)
    save_deep("deep grey.tif", 1)
    save_deep("deep.png", 3)
    save_deep("deep.tiff", 3)
    save_deep("deep alpha.png", 4)
    save("bits.png", colours.convert("1"))
    save("palette.png", colours.quantize(16))
    save("palette hole.png", colours.quantize(16), transparency=3)
    save("inks.jpg", colours.convert("CMYK"), quality=98)
    save("inks.tif", colours.convert("CMYK"))
    # Kinds of files
    save("progressive.JPG", colours, progressive=True, quality=95)
    save("plain.jpeg", colours, quality=95, dpi=(300, 300))
    save("lossless.webp", colours, lossless=True)
    save("alpha.webp", alpha, lossless=True)
    save("packed.tif", colours, compression="tiff_lzw")
    pyvips.Image.new_from_array(smooth(300, 280)).tiffsave(str(folder / "tiles.tif"), tile=True, pyramid=False)
    save("windows.bmp", colours)
    save("windows palette.bmp", colours.quantize(16))
    pyvips.Image.new_from_array(smooth()).heifsave(str(folder / "modern.avif"), compression="av1", Q=90)
    # What they carry
    for turn in (3, 6, 8):
        save(f"turned {turn}.jpg", colours, exif=exif(x0112=turn), quality=95)
    save("turned.png", colours, exif=exif(x0112=5))
    save("everything.jpg", colours, exif=exif(), icc_profile=PROFILE, xmp=XMP, dpi=(240, 240), quality=95)
    save("everything.png", colours, exif=exif(), icc_profile=PROFILE, dpi=(240, 240))
    save("everything.tif", colours, icc_profile=PROFILE, dpi=(240, 240))
    save("everything.webp", colours, exif=exif(), icc_profile=PROFILE, xmp=XMP, lossless=True)
    # Names and links
    save("Ümläute und Leerzeichen (1).png", colours)
    save("日本.png", colours)
    save("a.b.c.png", colours)
    (folder / "says jpeg, is png.jpg").write_bytes((folder / "a.b.c.png").read_bytes())
    (folder / "linked.png").symlink_to(folder / "a.b.c.png")
    (folder / "loop").symlink_to(folder)
    (folder / "album.png").mkdir()
    (folder / "notes.txt").write_text("no picture and not said to be one")

    # What cannot be restored
    reasons = {}

    def broken(name: str, content: bytes, reason: str) -> None:
        (folder / name).write_bytes(content)
        reasons[name] = reason

    def encoded(kind: str, **options: object) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(smooth(200, 200)).save(stream, kind, **options)
        return stream.getvalue()

    frames = {"save_all": True, "append_images": [Image.new("RGB", (200, 200), "red")]}
    broken("cut.png", encoded("PNG")[:-2000], "cannot be read")
    broken("cut.jpg", encoded("JPEG")[:-700], "cannot be read")
    broken("cut.webp", encoded("WEBP")[:-300], "cannot be read")
    broken("text.jpg", b"this is no picture\n" * 30, "no known kind")
    broken("empty.png", b"", "empty")
    broken("moving.gif", encoded("GIF", **frames), "'.gif' are not supported")
    broken("moving.webp", encoded("WEBP", **frames), "holds 2 pictures")
    broken("moving.png", encoded("PNG", **frames), "animation")
    broken("pages.tif", encoded("TIFF", **frames), "holds 2 pictures")
    pyvips.Image.new_from_array(deep.astype(np.float32)).tiffsave(str(folder / "numbers.tif"))
    reasons["numbers.tif"] = "range is unknown"
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    reasons |= {"circle.png": "leads nowhere", "nowhere.jpg": "leads nowhere"}
    os.mkfifo(folder / "pipe.png")
    reasons["pipe.png"] = "no regular file"
    save("secret.png", colours)
    (folder / "secret.png").chmod(0)
    if not os.access(folder / "secret.png", os.R_OK):  # the superuser may read everything
        reasons["secret.png"] = "Permission denied"
    return reasons


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny network that makes everything some levels brighter."""
    net = small_network(["none", "noise"], brighter=[0.15, 0.15])
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, net)
    return path


def command(weights: Path, *arguments: object) -> list[str]:
    start = [sys.executable, "-m", "opir_lightning.restore", *map(str, arguments)]
    return [*start, "--weights", str(weights), "--device", "cpu", "--recursive"]


def upright(path: Path) -> Image.Image:
    from PIL import ImageOps

    with Image.open(path) as opened:
        return ImageOps.exif_transpose(opened)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def restored(weights, tmp_path_factory):
    """The folder, the results of a run that was killed and of the one after it, and what that said."""
    folder, out = tmp_path_factory.mktemp("nasty") / "in", tmp_path_factory.mktemp("results") / "out"
    reasons = make(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file() and os.access(path, os.R_OK)}
    first = subprocess.Popen(command(weights, folder, "-o", out), stderr=subprocess.PIPE)
    while first.poll() is None and not (out.is_dir() and len(names(out)) > 9):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stderr.close()
    there = {path: path.stat().st_mtime_ns for path in out.iterdir() if not path.name.startswith(".")}
    done = subprocess.run(command(weights, folder, "-o", out), capture_output=True, text=True, check=False)
    assert {path: path.read_bytes() for path in before} == before
    return folder, out, reasons, there, done


def test_what_can_be_read_is_restored_and_the_rest_is_named_with_its_reason(restored):
    folder, out, reasons, _, done = restored
    given = names(folder) - {"loop", "album.png", "notes.txt"}
    assert len(given) > 40
    assert names(out) == given - set(reasons)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(said) == len(reasons)
    for name, reason in reasons.items():
        assert sum(f"/{name}" in line and reason in line for line in said) == 1, (name, done.stderr)


def test_a_second_run_finishes_what_a_killed_one_has_left_and_nothing_else(restored):
    _, out, reasons, there, done = restored
    assert len(there) >= 10
    assert {path: path.stat().st_mtime_ns for path in there} == there
    rest = len(names(out)) - len(there)
    assert rest > 0
    assert done.stdout.startswith(f"{rest} restored, {len(there)} already there, {len(reasons)} failed")


def test_size_mode_and_depth_stay(restored):
    folder, out, *_ = restored
    becomes = {"CMYK": "RGB", "P": "RGB", "1": "L"}  # a palette cannot hold new colours, nor a bit new greys
    for name in sorted(names(out)):
        before, after = upright(folder / name), upright(out / name)
        mode = "RGBA" if name == "palette hole.png" else becomes.get(before.mode, before.mode)
        assert (after.size, after.mode) == (before.size, mode), name
        if before.mode in ("L", "LA", "RGB", "RGBA") and "deep" not in name:
            old, new = (np.asarray(image).astype(int) for image in (before, after))
            colours = slice(0, 1 if before.mode.startswith("L") else 3)
            old, new = (value.reshape(*value.shape[:2], -1) for value in (old, new))
            assert np.abs(new[..., colours] - old[..., colours]).mean() > 5, name  # something was done
            assert np.corrcoef(old[..., colours].ravel(), new[..., colours].ravel())[0, 1] > 0.95 or old.size < 4, name
            assert np.array_equal(new[..., 3:], old[..., 3:]), name
        if "deep" in name:
            old, new = (cv2.imread(str(path / name), cv2.IMREAD_UNCHANGED) for path in (folder, out))
            assert (new.dtype, new.shape) == (np.uint16, old.shape), name
            assert len(np.unique(new)) > 1000, name


def test_what_a_file_carries_stays(restored):
    _, out, *_ = restored
    for name in ("everything.jpg", "everything.png", "everything.webp", "turned 6.jpg", "turned.png"):
        with Image.open(out / name) as result:
            data = result.getexif()
            assert (data[0x010F], data[0x8298]) == ("Camera", "A. Photographer"), name
            assert data.get(0x0112, 1) == 1, name
    for name in ("everything.jpg", "everything.png", "everything.tif", "everything.webp"):
        with Image.open(out / name) as result:
            assert result.info["icc_profile"] == PROFILE, name
            if not name.endswith("webp"):
                assert result.info["dpi"] == pytest.approx((240, 240), rel=0.01), name
    for name in ("everything.jpg", "everything.webp"):
        with Image.open(out / name) as result:
            assert b"xmpmeta" in result.info["xmp"], name
    with Image.open(out / "a.b.c.png") as result:
        assert result.info["dpi"] == pytest.approx((72, 72), rel=0.01)  # and not libvips' 25


def test_a_file_that_may_not_be_read_is_named(weights, capsys):
    superuser = os.geteuid() == 0  # who may read everything: become somebody else meanwhile
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        shutil.copy(weights, folder / "model.safetensors")
        for picture in ("open.png", "secret.png"):
            Image.fromarray(smooth()).save(folder / picture)
        options = ["--weights", folder / "model.safetensors", "--device", "cpu"]
        # What Python imports for it may lie where only the superuser reads.
        assert main([*map(str, (folder / "open.png", "-o", folder / "before", *options))]) == 0
        (folder / "secret.png").chmod(0)
        if superuser:
            os.seteuid(65534)
        try:
            arguments = [folder, "-o", folder / "out", *options]
            assert main([*map(str, arguments)]) == 1
        finally:
            if superuser:
                os.seteuid(0)
        assert names(folder / "out") == {"open.png"}
    assert "secret.png' cannot be read as a picture: [Errno 13] Permission denied" in capsys.readouterr().err


def test_nothing_but_results_lies_in_the_folder_after_a_run(weights, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(smooth()).save(tmp_path / "in" / "a.png")
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--device", "cpu"]
    assert main([*map(str, arguments)]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_large_pictures_lie_in_files_and_come_out_the_same(weights, tmp_path, monkeypatch):
    from opir_lightning import restore
    from opir_lightning.picture_files import reading

    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(smooth(150, 130, 4)).save(folder / "alpha.png")
    Image.fromarray(smooth(150, 130)).save(folder / "turned.jpg", exif=exif(x0112=6))
    cv2.imwrite(str(folder / "deep.png"), smooth(150, 130, 1, 65535)[..., 0])
    Image.fromarray(smooth(150, 130)[..., 0]).save(folder / "grey.tif")
    options = ["--weights", weights, "--tile", "64", "--compare", "--uncertainty"]
    assert restore.main([str(folder), "-o", str(tmp_path / "memory"), *map(str, options)]) == 0
    mapped = []
    for module in (reading, restore):
        monkeypatch.setattr(module, "LARGE", 100)
    real = restore.Scratch.map
    monkeypatch.setattr(
        restore.Scratch, "map", lambda self, *arguments: mapped.append(arguments[1]) or real(self, *arguments)
    )
    assert restore.main([str(folder), "-o", str(tmp_path / "files"), *map(str, options)]) == 0
    assert len(mapped) == 4 * 5  # picture, result, comparison, uncertainty as numbers and in colours
    assert names(tmp_path / "files") == names(tmp_path / "memory")
    for name in names(tmp_path / "files"):
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes(), name


MEASURED = """
import resource, sys
import opir_lightning.inference, opir_lightning.checkpoints, opir_lightning.restore, tqdm, pyvips, cv2
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = opir_lightning.restore.main(sys.argv[1:])
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
sys.exit(status)
"""


@pytest.mark.slow
def test_a_picture_of_a_hundred_megapixels_needs_little_memory(weights, tmp_path):
    width, height = 12_000, 9_000
    pyvips.Image.perlin(width, height).scaleimage().bandjoin(
        [pyvips.Image.gaussnoise(width, height, mean=120, sigma=20).cast("uchar")] * 2
    ).copy(interpretation="srgb").jpegsave(str(tmp_path / "large.jpg"), Q=90)
    arguments = [tmp_path / "large.jpg", "-o", tmp_path / "out", "--weights", weights, "--uncertainty", "--compare"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "large.jpg") as result:
        assert result.size == (width, height)
    assert int(done.stdout.split()[-1]) < 1024 + 512
