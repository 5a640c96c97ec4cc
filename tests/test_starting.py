"""A command that cannot write says so in one sentence, from before Hydra's first file on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hydra._internal.utils import detect_calling_file_or_module_from_task_function, detect_task_name
from omegaconf import OmegaConf

from opir_lightning.config import explain_user_errors
from opir_lightning.errors import UserError
from opir_lightning.starting import RoomToBegin, check_room


@pytest.fixture
def full(monkeypatch):
    """A disk that takes names, and no content."""

    def sync(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", sync)


@pytest.mark.usefixtures("full")
def test_a_full_disk_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"run' cannot be written: the disk is full .*folder with hydra\.run\.dir\.$"):
        check_room(tmp_path / "outputs" / "run", "hydra.run.dir")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("full")
def test_a_command_that_writes_nothing_is_not_asked(tmp_path, capsys):
    def config(subdir):
        return OmegaConf.create({"hydra": {"run": {"dir": str(tmp_path)}, "output_subdir": subdir}})

    RoomToBegin().on_run_start(config(None))
    with pytest.raises(SystemExit) as leaving:
        RoomToBegin().on_run_start(config("config"))
    assert leaving.value.code == 1
    assert "error: " in capsys.readouterr().err


def test_where_there_is_room_nothing_is_left_of_the_question(tmp_path):
    check_room(tmp_path / "outputs" / "run", "hydra.run.dir")
    assert not list(tmp_path.iterdir())


def test_the_log_of_a_command_has_its_name():
    def main(config):
        return config

    main.__module__ = "__main__"  # as with python -m
    said = detect_calling_file_or_module_from_task_function(explain_user_errors(main))
    assert detect_task_name(*said) == Path(__file__).stem


def test_a_disk_that_is_full_later_is_one_sentence_too(tmp_path, capsys):
    def task(config):
        raise OSError(number, os.strerror(number))

    number = errno.ENOSPC
    with pytest.raises(SystemExit) as leaving:
        explain_user_errors(task)(OmegaConf.create({"run_dir": str(tmp_path)}))
    assert leaving.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: '{tmp_path}' cannot be written: the disk is full (")
    assert len(said.splitlines()) == 1
    number = errno.ENOENT  # a mistake of the program, which is not hidden
    with pytest.raises(FileNotFoundError):
        explain_user_errors(task)(OmegaConf.create({"run_dir": str(tmp_path)}))
