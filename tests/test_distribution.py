"""The package as others get it: what is in it, that two builds are the same, and that it works where it is installed.

The install test asks the package index for what is not in uv's cache.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.wheel,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the sources come from git, and this is no checkout"),
]


def run(*command, cwd, **environment):
    """Run a command where nothing tells Python of the checkout; returns what it printed."""
    # Without bytecode each command would compile all that it imports anew.
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A function that lays the tracked files, as they are in the checkout, into a new folder."""
    # The work tree as a commit that nothing points to; nothing is printed where it is the last commit.
    state = run("git", "stash", "create", cwd=ROOT).strip() or "HEAD"

    def lay(name):
        folder = tmp_path_factory.mktemp(name)
        archive = subprocess.run(["git", "archive", state], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        return folder

    return lay


def build(folder):
    """Build both files; returns them by their ending."""
    run(
        sys.executable, "-m", "uv", "build", "--offline", "--no-build-isolation", "--python", sys.executable, cwd=folder
    )
    built = {path.suffix: path for path in (folder / "dist").glob("opir_lightning-*")}
    assert set(built) == {".whl", ".gz"}
    return built


@pytest.fixture(scope="module")
def built(sources):
    return build(sources("one"))


def test_two_builds_are_the_same_whatever_lies_about_and_whoever_builds(built, sources):
    other = sources("another_with_a_longer_name")
    for stray in ("src/opir_lightning/__pycache__/train.pyc", "conf/__pycache__/a.pyc", "tests/__pycache__/b.pyc",
                  ".mypy_cache/c.json", "outputs/demo/last.ckpt", "dist/old.whl"):  # fmt: skip
        (other / stray).parent.mkdir(parents=True, exist_ok=True)
        (other / stray).write_text("stray")
    (other / "dist" / "old.whl").unlink()
    for path in other.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(path.stat().st_mode & 0o700)
    again = build(other)
    for ending, path in built.items():
        assert again[ending].name == path.name
        ours, theirs = (hashlib.sha256(p.read_bytes()).hexdigest() for p in (path, again[ending]))
        assert ours == theirs, f"{path.name} differs between two builds"


def test_the_wheel_has_the_settings_weights_and_photographs_and_nothing_else(built):
    with zipfile.ZipFile(built[".whl"]) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist()}
    package = {name.removeprefix("opir_lightning/") for name in files if name.startswith("opir_lightning/")}
    source = ROOT / "src" / "opir_lightning"
    tracked = run("git", "ls-files", "conf", "src/opir_lightning", cwd=ROOT).split()
    assert package == {name.removeprefix("src/opir_lightning/") for name in tracked}
    assert "conf/experiment/five_task.yaml" in package
    assert len([name for name in package if name.startswith("data/demo/train/")]) == 10
    for line in (source / "weights" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256(files[f"opir_lightning/weights/{name}"]).hexdigest() == digest
    outside = {name.split("/", 1)[1] for name in files if not name.startswith("opir_lightning/")}
    assert outside == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_source_archive_has_what_a_build_and_its_tests_need(built):
    with tarfile.open(built[".gz"]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    tracked = set(run("git", "ls-files", "conf", "src", "tests", "experiments", ".ci", cwd=ROOT).split())
    extra = {"Makefile", "requirements.lock", "README.md", "LICENSE", "LICENCES.md", "pyproject.toml", ".gitignore"}
    assert names == tracked | extra | {"PKG-INFO"}


def test_the_wheel_works_in_an_empty_environment_and_any_folder(built, sources, tmp_path):
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("make", "setup", f"VENV={environment}", f"WHAT={built['.whl']}", cwd=sources("setup"))
    programs = environment / "bin"
    where = run(programs / "python", "-c", "import opir_lightning; print(opir_lightning.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(environment)
    # Every command can be loaded without any extra.
    load = "from importlib.metadata import distribution as d; [e.load() for e in d('opir-lightning').entry_points]"
    run(programs / "python", "-c", load, cwd=elsewhere)

    cache = str(tmp_path / "cache")
    run(
        programs / "python", "-m", "opir_lightning.train", "experiment=five_task", "trainer=smoke",
        cwd=elsewhere, XDG_CACHE_HOME=cache,
    )  # fmt: skip
    (folder,) = elsewhere.glob("outputs/five_task/*")
    assert (folder / "results.json").is_file()

    photograph = ROOT / "src" / "opir_lightning" / "data" / "demo" / "heldout" / "bridge.jpg"
    with Image.open(photograph) as picture:
        clean = np.asarray(picture.convert("RGB").crop((100, 100, 356, 356)), np.float32)
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    Image.fromarray((clean + noise).clip(0, 255).astype(np.uint8)).save(elsewhere / "noisy.png")
    run(programs / "opir-restore", "noisy.png", "-o", "own", "--weights", folder / "model.safetensors", cwd=elsewhere)
    run(programs / "opir-restore", "noisy.png", "-o", "default", cwd=elsewhere)
    run(programs / "opir-restore", "noisy.png", "-o", "tiny", "--weights", "opir_tiny", cwd=elsewhere)
    for out in ("default", "tiny"):  # two steps of training teach nothing
        with Image.open(elsewhere / out / "noisy.png") as picture:
            assert np.square(np.asarray(picture, np.float32) - clean).mean() < 0.1 * np.square(noise).mean()
    assert (elsewhere / "own" / "noisy.png").is_file()
