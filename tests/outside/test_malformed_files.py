"""Some hundred files that are broken, lie or mean harm: each is read, or refused in one sentence, and nothing else.

They are read in a process of its own, by the functions that the commands call. With ``-s`` a table of kinds and
outcomes is printed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from malformed_pictures import (
    depth_files,
    good_files,
    jpeg_files,
    other_pictures,
    pack_files,
    png_files,
    spoiled_pictures,
    tiff_files,
    unfolding_files,
)
from malformed_runs import log_files, run_folders
from malformed_weights import File, checkpoint_files, network, safetensors_files

from opir_lightning.checkpoints import save_weights

SEED = 20
ROOM = 2048  # MiB beyond what is in use once all is imported
HERE = Path(__file__).parent


class Told(NamedTuple):
    """What the process said of one file."""

    kind: str
    reader: str
    name: str
    outcome: str
    text: str


class Place:
    """A folder of files, and what is to read each of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.canary = folder / "files", folder / "canary"
        self.canary.mkdir(parents=True)
        self.weights = folder / "model" / "model.safetensors"
        save_weights(self.weights, network())
        for suffix, content in good_files().items():
            (self.weights.parent / f"good.{suffix}").write_bytes(content)
        self.kinds: dict[tuple[str, str], str] = {}

    def add(self, group: str, files: Iterable[File], readers: Iterable[str], suffix: str = "") -> None:
        """Write files and note who is to read each."""
        folder = self.folder / group
        folder.mkdir(parents=True)
        for kind, name, content in files:
            path = folder / f"{kind}, {name.replace('/', '_')}{suffix}"
            path.write_bytes(content) if isinstance(content, bytes) else content(path)
            for reader in readers:
                self.kinds[reader, str(path)] = kind

    def read(self) -> tuple[list[Told], int]:
        """What became of all of them, and the memory that it took in MiB."""
        listing = self.folder.parent / "listing"
        listing.write_text("".join(json.dumps(pair) + "\n" for pair in self.kinds))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "2"}
        done = subprocess.run(
            [sys.executable, HERE / "reading.py", listing, self.weights],
            capture_output=True, text=True, errors="replace", check=False, timeout=1500, env=environment,
        )  # fmt: skip
        lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr[-3000:]
        assert "MiB" in lines[-1], f"ended with {done.returncode} at {lines[-1]}: {done.stderr[-2000:]}"
        told = []
        for line in (line for line in lines if "outcome" in line):
            reader, path = line["reader"], line["path"]
            told.append(Told(self.kinds[reader, path], reader, Path(path).name, line["outcome"], line["text"]))
        assert len(told) == len(self.kinds)
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return told, int(lines[-1]["MiB"])


def hold(place: Place) -> list[Told]:
    """Read everything; no code has run, nothing but refusals came back, and the memory was bounded."""
    told, memory = place.read()
    print_table(told, memory)
    assert list(place.canary.iterdir()) == []
    raised = [one for one in told if one.outcome not in ("read", "refused")]
    assert not raised, "\n".join(map(str, raised[:20]))
    long = [one for one in told if "\n" in one.text or not one.text.isprintable()]
    assert not long, "\n".join(map(repr, long[:20]))
    assert memory <= ROOM
    return told


def print_table(told: list[Told], memory: int) -> None:
    counts = Counter((one.reader, one.kind, one.outcome) for one in told)
    print(f"\n{'read by':10} {'kind':20} {'read':>5} {'refused':>8} {'raised':>7}")
    for reader, kind in dict.fromkeys((one.reader, one.kind) for one in told):
        row = [counts[reader, kind, outcome] for outcome in ("read", "refused", "raised")]
        print(f"{reader:10} {kind:20} {row[0]:5} {row[1]:8} {row[2]:7}")
    print(f"{len(told)} readings of {len({(one.name, one.kind) for one in told})} files, {memory} MiB at most")


def of(told: list[Told], *kinds: str) -> set[str]:
    """The outcomes of some kinds."""
    return {one.outcome for one in told if one.kind in kinds}


def test_no_file_runs_code_takes_the_memory_or_ends_in_a_traceback(tmp_path):
    """Some 800 files, each by the reader that is most likely to get it."""
    place, rng = Place(tmp_path), random.Random(SEED)
    place.add("safetensors", safetensors_files(rng, place.canary), ["weights"], ".safetensors")
    place.add("ckpt", checkpoint_files(rng, place.canary), ["weights"], ".ckpt")
    place.add("runs", run_folders(rng, place.canary), ["run"])
    place.add("spoiled", [file for file in spoiled_pictures(rng) if not file[1].endswith("npy")], ["picture"])
    place.add("headers", [*tiff_files(), *other_pictures(place.canary)], ["picture"])
    place.add("depth", depth_files(place.canary), ["depth"])
    place.add("packs", pack_files(place.canary), ["pack"])
    told = hold(place)
    assert len(told) > 800
    by = {reader: [one for one in told if one.reader == reader] for reader in ("weights", "run", "picture", "depth")}
    for kind in ("cut", "length lied about", "offsets", "pickle", "zip bomb", "memory", "huge"):
        assert of(by["weights"], kind) == {"refused"}, kind
    assert of(by["run"], "in order") == {"read"}
    assert of(by["run"], "huge") == {"refused"}
    assert of(by["picture"], "posing", "huge", "pages") == {"refused"}
    assert of(by["depth"], "pickle", "zip") == {"refused"}


@pytest.mark.slow
def test_no_file_does_whoever_reads_it(tmp_path):
    """All pictures by all that read pictures, bombs included; folders of checkpoints to go on from; logs."""
    place, rng = Place(tmp_path), random.Random(SEED)
    pictures = [*spoiled_pictures(rng), *png_files(), *jpeg_files(), *tiff_files(), *other_pictures(place.canary)]
    pictures += unfolding_files()
    place.add("pictures", pictures, ["picture", "restorer", "rgb", "data", "depth", "kernel"])
    place.add("logs", log_files(rng), ["log"])
    place.add("headers", safetensors_files(rng, place.canary), ["header"], ".safetensors")

    def as_run(file: File) -> File:
        kind, name, content = file
        assert isinstance(content, bytes)

        def write(folder: Path) -> None:
            (folder / "checkpoints").mkdir(parents=True)
            (folder / "checkpoints" / "last.ckpt").write_bytes(content)

        return kind, name, write

    place.add("progress", map(as_run, checkpoint_files(rng, place.canary)), ["progress"])
    place.add("finished", run_folders(rng, place.canary), ["progress"])
    told = hold(place)
    assert of([one for one in told if one.reader == "picture"], "huge", "pages") == {"refused"}


@pytest.mark.slow
def test_the_commands_name_what_is_broken_in_a_folder_of_such_files(tmp_path):
    place, rng = Place(tmp_path), random.Random(SEED)
    files = [*spoiled_pictures(rng), *png_files(), *tiff_files(), *other_pictures(place.canary)]
    # No two with the same stem: what is asked for beside a result is named after it.
    numbered = [(str(number), name, content) for number, (_, name, content) in enumerate(files)]
    place.add("pictures", [file for file in numbered if not file[1].endswith("npy")], [])
    (place.folder / "pictures" / "caf\udce9 \x1b[2J\n.png").write_bytes(good_files()["png"][:200])
    place.add("runs", run_folders(rng, place.canary), [])
    for reader, folder in (("restore", "pictures"), ("check", "pictures"), ("compare", "runs")):
        place.kinds[reader, str(place.folder / folder)] = "folder"
    told = hold(place)
    assert {one.reader: one.outcome for one in told} == {"restore": "refused", "check": "refused", "compare": "read"}
