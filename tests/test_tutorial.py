"""The README's tutorial on own pictures, followed to the letter: its files are written, its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[tuple[str, str]]:
    """Language and text of each code block of the section."""
    section = README.read_text().split("### Your own pictures")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL)


def write_files(folder: Path) -> list[str]:
    """Write the files that the tutorial shows; their first comment names each. Returns the commands."""
    commands = []
    for language, text in blocks():
        if language == "sh":
            commands += text.splitlines()
        else:
            name = next(line for line in text.splitlines() if line.startswith("# ") and "@package" not in line)
            path = folder / name.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return commands


def follow(folder: Path, *, shorter: bool) -> None:
    for command in write_files(folder):
        words = [sys.executable, *command.split()[1:]]
        if shorter and "train" in command:
            words += ["trainer.max_steps=2", "data.workers=0", "data.val_pictures=1", "data.val_centre=64"]
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])


def test_the_tutorial_shows_all_three_ways_and_its_files_parse():
    languages = [language for language, _ in blocks()]
    assert languages.count("yaml") == 2
    assert languages.count("python") == 2
    for language, text in blocks():
        if language == "python":
            compile(text, "tutorial", "exec")


@pytest.mark.slow
def test_the_tutorial_works_as_written(tmp_path):
    follow(tmp_path, shorter=False)
    before, after = (Image.open(tmp_path / folder / "bridge.png") for folder in ("my_data/heldout/faded", "restored"))
    assert before.size == after.size
    assert (tmp_path / "scratches_run" / "model.safetensors").is_file()
