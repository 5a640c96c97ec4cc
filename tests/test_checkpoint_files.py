"""Checkpoint files: whole or not there, whatever happens while they are written. No Lightning in here."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_files import files_up_to

from opir_lightning.checkpoint_files import damage, previous_of, write_checkpoint
from opir_lightning.disk import FullDiskError, cannot_write, lossy_streams, quieten_full_logs, room_for
from opir_lightning.errors import UserError
from opir_lightning.files import add_whole, remove_leftovers, write_atomically
from opir_lightning.resume import find_progress, how_to_go_on, settings_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills and limits as Linux has them")
SETTINGS = {"seed": 0, "model": {"width": 8}}


def checkpoint(step: int, size: int = 5000, **settings) -> dict:
    weights = {"net.kernel": torch.full((size,), float(step)), "net.bias": torch.arange(7.0)}
    kept = {"loops": {}, "global_step": step, "model_settings": {}, "config": {**SETTINGS, **settings}}
    return {"state_dict": weights, **kept}


def step_of(path: Path) -> int:
    assert damage(path) is None
    return int(torch.load(path, weights_only=True)["state_dict"]["net.kernel"].mean())


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def killed_at(moment: int, folder: Path, action) -> bool:
    """Do something in a process that kills itself before its n-th access to the folder; whether it came so far."""
    child = os.fork()
    if child == 0:
        seen = [0]

        def hook(event, arguments):
            if event in ("open", "os.rename", "os.link", "os.remove") and str(folder) in str(arguments[0]):
                seen[0] += 1
                if seen[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_writer_that_dies_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint(checkpoint(1), last)
    write_checkpoint(checkpoint(2), last, keep=True)
    found, moment = set(), 1
    while killed_at(moment, tmp_path, lambda: write_checkpoint(checkpoint(3), last, keep=True)):
        found.add((step_of(last), step_of(previous_of(last))))
        remove_leftovers(tmp_path)
        assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "last.previous.ckpt"}
        write_checkpoint(checkpoint(1), previous_of(last))  # as before, for the next moment
        write_checkpoint(checkpoint(2), last)
        moment += 1
    assert moment > 6
    assert found == {(2, 1), (2, 2), (3, 2)}
    assert (step_of(last), step_of(previous_of(last))) == (3, 2)


def test_after_a_death_between_two_renames_the_next_checkpoint_is_kept_as_any_other(tmp_path):
    """Both names mean one file then, and a rename between them does nothing."""
    last = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1), last)
    os.link(last, previous_of(last))
    write_checkpoint(checkpoint(2), last, keep=True)
    assert (step_of(last), step_of(previous_of(last))) == (2, 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_without_hard_links_keeps_the_checkpoint_before_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    last = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1), last)
    write_checkpoint(checkpoint(2), last, keep=True)
    assert (step_of(last), step_of(previous_of(last))) == (2, 1)


def test_what_comes_back_otherwise_does_not_replace_a_checkpoint(tmp_path, monkeypatch):
    last = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1), last)
    sync = os.fsync

    def forgetful(handle):
        """A disk that loses a page, and says nothing."""
        if os.fstat(handle).st_size > 9000:
            os.pwrite(handle, bytes(4096), 4096)
        sync(handle)

    monkeypatch.setattr(os, "fsync", forgetful)
    with pytest.raises(OSError, match="is damaged") as raised:
        write_checkpoint(checkpoint(2), last, keep=True)
    assert "the disk reports an error" in cannot_write(last, raised.value)
    assert step_of(last) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_every_damage_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1), path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "cut off" in damage(path)
    weights = whole.index(torch.full((10,), 1.0).numpy().tobytes()) + 8000
    for start, stop in ((weights, weights + 1), (weights, weights + 4096)):
        path.write_bytes(whole[:start] + bytes(b ^ 64 for b in whole[start:stop]) + whole[stop:])
        assert "damaged" in damage(path)
    assert torch.load(path, weights_only=True)["state_dict"]["net.kernel"].mean() != 1  # torch believes it
    path.write_bytes(b"PK" + os.urandom(5000))
    assert damage(path)
    assert "missing" in damage(tmp_path / "other.ckpt")
    assert "cannot be read" in damage(tmp_path)


def test_only_a_checkpoint_of_a_training_can_be_gone_on_with(tmp_path):
    path = tmp_path / "some.ckpt"
    write_checkpoint({"state_dict": {}, "model_settings": {}}, path)
    with pytest.raises(UserError, match="is no checkpoint of a training that can be gone on with"):
        settings_of(path)
    write_checkpoint({**checkpoint(1), "more": Path("/")}, path)
    with pytest.raises(UserError, match="more than plain data"):
        settings_of(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"some\.ckpt' cannot be read: it is cut off"):
        settings_of(path)


def test_a_resumed_run_takes_the_checkpoint_before_where_the_newest_is_unusable_and_says_so(tmp_path):
    settings = {**SETTINGS, "run_dir": str(tmp_path)}
    assert find_progress(settings) == (False, None, "")
    assert "begin anew" in how_to_go_on(tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    previous = previous_of(last)
    write_checkpoint(checkpoint(1), last)
    write_checkpoint(checkpoint(2), last, keep=True)
    assert find_progress(settings) == (False, str(last), "")
    assert str(last) in how_to_go_on(tmp_path)
    (tmp_path / "results.json").write_text('{"meta": {"sett')  # a disk that was full: they are made anew
    assert find_progress(settings) == (False, str(last), "")
    (tmp_path / "results.json").unlink()

    last.write_bytes(last.read_bytes()[:5000])
    finished, taken, remark = find_progress(settings)
    assert (finished, taken) == (False, str(previous))
    assert "last.ckpt' cannot be read: it is cut off or damaged" in remark
    assert remark.endswith("last.previous.ckpt', is whole and taken instead.")
    assert f"resume={previous}" in how_to_go_on(tmp_path)
    last.unlink()
    assert "last.ckpt' is missing" in find_progress(settings).remark
    with pytest.raises(UserError, match="other settings"):
        find_progress({**settings, "seed": 1})

    previous.write_bytes(b"torn")
    for unusable in (find_progress, lambda _: how_to_go_on(tmp_path)):
        with pytest.raises(UserError, match=r"last\.ckpt' is missing, and .*previous\.ckpt', cannot be read"):
            unusable(settings)


@pytest.mark.parametrize("kind", ["limit", "disk"])
def test_without_room_the_older_checkpoints_stay_and_the_reason_is_said(tmp_path, request, kind):
    folder = request.getfixturevalue("small_disk") if kind == "disk" else tmp_path
    last = folder / "last.ckpt"
    write_checkpoint(checkpoint(1), last)
    write_checkpoint(checkpoint(2), last, keep=True)
    if kind == "disk":
        with pytest.raises(OSError) as raised:  # noqa: PT011
            write_checkpoint(checkpoint(3, 60_000), last, keep=True)
        assert "the disk is full (2" in cannot_write(last, raised.value)
        assert "KiB are free there)" in cannot_write(last, raised.value)
    else:
        with files_up_to(10_000), pytest.raises(OSError) as raised:  # noqa: PT011
            write_checkpoint(checkpoint(3), last, keep=True)
        assert "larger than is allowed" in cannot_write(last, raised.value)
    assert (step_of(last), step_of(previous_of(last))) == (2, 1)
    assert len(list(folder.iterdir())) == 2
    write_checkpoint(checkpoint(3), last, keep=True)
    assert step_of(last) == 3


def test_the_policy_says_whether_a_full_disk_ends_the_training(tmp_path, caplog):
    full = Path("/dev/full")

    def write(policy, **options):
        with room_for(full, policy, "it goes on.", **options), full.open("wb", buffering=0) as file:
            file.write(b"x")

    write("continue")
    write("continue", said=True)
    (warning,) = caplog.records
    assert warning.message.startswith("'/dev/full' cannot be written: the disk is full (")
    assert warning.message.endswith("free there); it goes on.")
    with pytest.raises(FullDiskError, match="on_full_disk=continue"):
        write("stop")
    with pytest.raises(FileNotFoundError), room_for(full, "continue", "it goes on."):
        (tmp_path / "none" / "file").write_text("not for want of room")


def test_lines_are_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.csv"
    write_atomically(path, b"step\n")
    with files_up_to(8), pytest.raises(OSError, match="too large"):
        add_whole(path, b"100\n200\n")
    assert path.read_bytes() == b"step\n"
    add_whole(path, b"100\n")
    assert path.read_bytes() == b"step\n100\n"


def test_a_log_file_without_room_says_so_once(tmp_path, capsys):
    handler = logging.FileHandler(tmp_path / "train.log", delay=True)
    logger = logging.getLogger()
    logger.addHandler(handler)
    try:
        quieten_full_logs()
        quieten_full_logs()
        with files_up_to(0):
            logger.warning("one")
            logger.warning("two")
    finally:
        logger.removeHandler(handler)
    assert (
        capsys.readouterr().err.count(f"{tmp_path}/train.log' cannot be written: the file is larger than is allowed")
        == 1
    )


def test_what_is_printed_to_a_full_disk_is_lost_and_nothing_else(monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with lossy_streams():
            print("lost", flush=True)
            assert sys.stdout.name == "/dev/full"
            print("kept", file=sys.stderr)
        assert sys.stdout is full
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # or closing it would fail as well
    assert capsys.readouterr().err == "kept\n"


def test_only_leftovers_of_writers_are_removed(tmp_path):
    mine = tmp_path / "checkpoints" / ".0123456789abcdef.tmp"
    others = [tmp_path / ".vim.tmp", tmp_path / "a.tmp", tmp_path / "wandb" / "run" / ".0123456789abcdef.tmp"]
    for path in (mine, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert remove_leftovers(tmp_path) == [mine]
    assert all(path.exists() for path in others)
