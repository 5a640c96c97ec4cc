"""Packs of decoded pictures: what is believed, what is built anew, and what a killed build leaves."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opir_lightning.data import packs, store
from opir_lightning.data.images import PictureFile, read_rgb
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.data.store import ImageStore, PackedStore
from opir_lightning.errors import UserError

PHOTOGRAPHS = sorted((EMBEDDED / "train").glob("*.jpg"))
forked = multiprocessing.get_context("fork")


@pytest.fixture
def files(tmp_path) -> list[PictureFile]:
    """Twelve small photographs of different sizes in two folders, and a depth map."""
    found = []
    for number in range(12):
        path = tmp_path / "pictures" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(PHOTOGRAPHS[number % len(PHOTOGRAPHS)]) as image:
            image.convert("RGB").resize((60 + number, 50)).save(path)
        found.append(PictureFile(path))
    depth = tmp_path / "depth" / "0.png"
    depth.parent.mkdir()
    Image.fromarray(np.arange(50 * 60, dtype=np.uint16).reshape(50, 60) + 1).save(depth)
    return [*found, PictureFile(depth, "depth")]


def decoding(monkeypatch) -> list[PictureFile]:
    """The files that are decoded from now on."""
    decoded: list[PictureFile] = []
    read = PictureFile.read
    monkeypatch.setattr(PictureFile, "read", lambda file: (decoded.append(file), read(file))[1])
    return decoded


def holds(packed: PackedStore, files: list[PictureFile]) -> bool:
    return all(file in packed and np.array_equal(packed.get(file), file.read()) for file in files)


def test_a_second_run_decodes_nothing_and_gives_the_same_pixels(files, tmp_path, monkeypatch):
    first = PackedStore(tmp_path / "packs")
    assert first.load(files) == []
    assert holds(first, files)
    decoded = decoding(monkeypatch)
    second = PackedStore(tmp_path / "packs")
    assert second.load(files) == []
    again = [second.get(file) for file in files]
    assert decoded == []
    assert all(np.array_equal(pixels, first.get(file)) for pixels, file in zip(again, files, strict=True))
    assert again[-1].dtype == np.uint16
    assert not again[0].flags.writeable


def test_one_changed_file_makes_its_pack_anew_and_no_other(files, tmp_path, monkeypatch):
    PackedStore(tmp_path / "packs").load(files)
    before = set((tmp_path / "packs").glob("*.pack"))
    Image.new("RGB", (61, 40), "red").save(files[1].path)
    decoded = decoding(monkeypatch)
    packed = PackedStore(tmp_path / "packs")
    packed.load(files)
    assert {file.path.parent for file in decoded} == {files[1].path.parent}
    assert holds(packed, files)
    after = set((tmp_path / "packs").glob("*.pack"))
    assert len(after) == len(before) == 3  # the outdated one is gone
    assert len(after & before) == 2


def test_packs_of_other_selections_of_a_folder_stay(files, tmp_path):
    PackedStore(tmp_path / "packs").load(files)
    PackedStore(tmp_path / "packs").load(files[:3])
    assert len(list((tmp_path / "packs").glob("*.pack"))) == 5


@pytest.mark.parametrize("harm", ["truncated", "index", "empty", "grown"])
def test_a_pack_that_is_not_whole_is_built_anew(files, tmp_path, harm):
    PackedStore(tmp_path / "packs").load(files)
    for path in (tmp_path / "packs").glob("*.pack"):
        content = bytearray(path.read_bytes())
        if harm == "index":
            content[-60] ^= 1
        cut = {"truncated": content[:-1000], "index": content, "empty": b"", "grown": content + b"\0" * 64}
        path.write_bytes(cut[harm])
    packed = PackedStore(tmp_path / "packs")
    assert packed.load(files) == []
    assert holds(packed, files)
    assert all(packs.Pack(path) for path in (tmp_path / "packs").glob("*.pack"))


def test_a_wrong_pixel_is_noticed_at_first_use_and_the_picture_read_from_its_file(files, tmp_path, caplog):
    PackedStore(tmp_path / "packs").load(files)
    (plan,) = packs.plan_packs(tmp_path / "packs", files[:1] + files[2:12:2])
    content = bytearray(plan.path.read_bytes())
    content[len(packs.MAGIC) + 3000] ^= 1
    plan.path.write_bytes(content)
    packed = PackedStore(tmp_path / "packs")
    packed.load(files)
    assert np.array_equal(packed.get(plan.files[0]), plan.files[0].read())
    assert "is damaged" in caplog.text
    assert not plan.path.exists()  # so the next run builds it anew
    assert all(np.array_equal(packed.get(file), file.read()) for file in files)


def test_broken_files_are_named_every_time_and_the_others_are_there(files, tmp_path):
    files[2].path.write_bytes(files[2].path.read_bytes()[:200])
    files[5].path.write_text("no picture")
    for _ in range(2):
        packed = PackedStore(tmp_path / "packs")
        errors = packed.load(files)
        assert [name in str(error) for error, name in zip(errors, ("2.png", "5.png"), strict=True)] == [True, True]
        assert [file in packed for file in files].count(False) == 2


def test_another_process_maps_the_same_packs(files, tmp_path, monkeypatch):
    packed = PackedStore(tmp_path / "packs")
    packed.load(files)
    travelling = pickle.dumps(packed)
    assert len(travelling) < 20_000  # places, no pixels
    decoded = decoding(monkeypatch)
    other = pickle.loads(travelling)
    assert np.array_equal(other.get(files[3]), packed.get(files[3]))
    assert decoded == []
    shutil.rmtree(tmp_path / "packs")  # gone meanwhile: the pictures are still there
    last = pickle.loads(travelling)
    assert np.array_equal(last.get(files[3]), packed.get(files[3]))


def build(folder: Path, files: list[PictureFile]) -> None:
    PackedStore(folder).load(files)


def test_a_build_that_is_killed_never_leaves_a_pack_that_is_believed(files, tmp_path, monkeypatch):
    """Five times at a random moment of a build that is slowed down to a second."""
    monkeypatch.setattr(packs, "MOST_FILES", 4)
    read = PictureFile.read
    monkeypatch.setattr(PictureFile, "read", lambda file: (time.sleep(0.16), read(file))[1])
    folder, chance, seen_unfinished = tmp_path / "packs", random.Random(5), 0
    for _ in range(5):
        for path in folder.glob("*.pack"):
            path.unlink()
        process = forked.Process(target=build, args=(folder, files))
        process.start()
        while process.is_alive() and not list(folder.glob("*.building")):
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.8))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen_unfinished += bool(list(folder.glob("*.building")))
        for path in folder.glob("*.pack"):
            whole = packs.Pack(path)
            assert whole.broken == {}
            for number in range(len(whole)):
                whole.pixels(number)  # compares the checksum
    assert seen_unfinished > 0
    packed = PackedStore(folder)
    assert packed.load(files) == []
    monkeypatch.setattr(PictureFile, "read", read)
    assert holds(packed, files)
    assert not list(folder.glob("*.building"))


def test_two_processes_that_start_at_once_both_succeed_and_decode_each_file_once(files, tmp_path, monkeypatch):
    counted = tmp_path / "decoded"
    read = PictureFile.read

    def counting_read(file):
        with counted.open("a") as log:
            log.write(f"{file.path}\n")
        time.sleep(0.02)
        return read(file)

    monkeypatch.setattr(PictureFile, "read", counting_read)
    processes = [forked.Process(target=build, args=(tmp_path / "packs", files)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(counted.read_text().split()) == sorted(str(file.path) for file in files)
    monkeypatch.setattr(PictureFile, "read", read)
    packed = PackedStore(tmp_path / "packs")
    packed.load(files)
    assert holds(packed, files)


def test_no_room_or_no_right_to_write_is_said_before_anything_is_decoded(files, tmp_path, monkeypatch):
    decoded = decoding(monkeypatch)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as full:
        full.setattr(packs.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match=r"room.*data\.packs=memory"):
            PackedStore(tmp_path / "packs").load(files)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.packs"):
        PackedStore(tmp_path / "file" / "packs").load(files)
    assert decoded == []


def test_pictures_that_were_not_loaded_are_kept_only_within_the_limit(files, monkeypatch):
    decoded = decoding(monkeypatch)
    one = files[0].read().nbytes
    kept = ImageStore(recent_bytes=int(2.5 * one))
    for file in (files[0], files[1], files[0], files[2], files[0]):
        kept.get(file)
    assert [file.path.stem for file in decoded] == ["0", "0", "1", "2"]  # the first was the size's
    kept.get(files[1])
    assert decoded[-1] == files[1]  # the longest unused one had to go


def test_results_come_in_order_and_only_a_few_ahead():
    started = []

    def work(number):
        started.append(number)
        return number

    with store.ThreadPoolExecutor(2) as pool:
        results = store.map_ahead(pool, work, range(100), ahead=4)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        time.sleep(0.05)
        assert max(started) <= 3 + 4
        assert list(results) == list(range(3, 100))


def test_decoded_pixels_are_those_of_the_file(files, tmp_path):
    packed = PackedStore(tmp_path / "packs")
    packed.load(files)
    assert np.array_equal(packed[files[4].path], read_rgb(files[4].path))
