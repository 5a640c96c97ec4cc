"""A search among what is compared: its trials in a table and in plots, its complete runs beside each other."""

from __future__ import annotations

import csv
import re
import shutil
import sys

import pytest

from opir_lightning.compare import main
from opir_lightning.comparison.finding import read_runs
from opir_lightning.comparison.report import Options, compare
from opir_lightning.comparison.search_plots import parts
from opir_lightning.comparison.searches import read_search
from opir_lightning.errors import UserError
from opir_lightning.trials import JOURNAL, trial_folder

PLOTS = ["history", "validations", "importances", "slices", "coordinates"]


@pytest.fixture(scope="module")
def compared(searched, tmp_path_factory):
    """The search compared once: what came out, and the folder with it."""
    folder = tmp_path_factory.mktemp("comparison")
    return compare([searched], Options(folder, pictures=0)), folder


def test_complete_trials_are_the_runs_and_the_others_are_neither_runs_nor_left_out(compared):
    done, folder = compared
    assert [(group.name, len(group.runs)) for group in done.groups] == [("trial 0", 1), ("trial 1", 1)]
    assert done.left_out == []
    page = (folder / "index.html").read_text()
    assert "8 trials: 4 complete, 1 pruned, 1 failed, 1 cut off, 1 running. Best val/psnr: 23.750, trial 1 with" in page
    assert "Left out" not in page


def test_the_table_has_every_trial_with_state_value_steps_and_settings(searched, compared):
    done, folder = compared
    table = next(table for table in done.tables if table.title == "Trials of the search 'demo'")
    assert table.columns[:5] == ["trial", "state", "val/psnr", "steps", "seconds"]
    assert sorted(table.columns[5:]) == ["model.dilations", "model.kernel_size", "optimizer.lr", "task_code"]
    states = ["complete", "complete", "pruned", "failed", "cut off", "complete", "complete", "running"]
    assert [row[1].text for row in table.rows] == states
    assert [row[2].number for row in table.rows] == [22.5, 23.75, 18.25, None, None, 21.0, 20.0, None]
    assert [row[0].text for row in table.rows if row[2].best] == ["1"]
    assert [row[3].text for row in table.rows] == ["4", "4", "2", "–", "–", "4", "4", "–"]
    rates = [row[table.columns.index("optimizer.lr")].number for row in table.rows]
    assert rates == [trial.parameters["optimizer.lr"] for trial in read_search(searched).trials]
    with (folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["optimizer.lr"]) for row in rows] == rates
    assert {row["model.dilations"] for row in rows} <= {"[1, 2]", "[1, 2, 3]"}


def test_the_plots_are_in_the_page_and_ask_for_nothing(compared):
    _, folder = compared
    page = (folder / "index.html").read_text()
    part = page[page.index("<h2>Search demo</h2>") :]
    part = part[: part.index("</section>")]
    links = re.findall(r"""(?:src|href|url\()\s*=?\s*["'(]([^"')]*)""", part)
    assert len(links) == len(PLOTS)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert all((folder / f"search-{name}.pdf").is_file() for name in PLOTS)
    assert "Pruned: trial 2 after validation 1." in part
    assert "the best went from 22.500 to 23.750" in part
    assert "<b>" not in part  # a setting of that name is only ever text


@pytest.mark.usefixtures("no_plots")
def test_a_run_of_a_search_brings_its_search_and_only_itself(searched, tmp_path, capsys):
    single, best, pruned = searched.parent / "single", trial_folder(searched, 1), trial_folder(searched, 2)
    done = compare([best, single, pruned], Options(tmp_path, pictures=0))
    assert [search.name for search in done.searches] == ["demo"]
    assert [run.path for group in done.groups for run in group.runs] == [best, single]
    assert [group.name for group in done.groups] == ["kernel_size=5", "kernel_size=7"]
    assert done.left_out == [(pruned, "It is trial 2 of a search, pruned.")]
    assert (tmp_path / "search-history.pdf").is_file()
    assert main([str(pruned), "-o", str(tmp_path)]) == 1
    assert "There is no finished run to compare: The search 'demo' has 8 trials" in capsys.readouterr().err


def test_a_journal_that_is_damaged_is_named_and_its_runs_are_runs_like_others(searched, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(searched, broken)
    (broken / JOURNAL).write_text('{"op_code": 4, "study_id": 7}\n{"op_code"\n')
    before = (broken / JOURNAL).read_bytes()
    runs, searches, left_out = read_runs([broken])
    reasons = {item.path: item.reason for item in left_out}
    assert "Its journal is damaged" in reasons[broken]
    assert "The training is not finished" in reasons[trial_folder(broken, 2)]
    assert ([run.path.name for run in runs], searches) == (["0000", "0001"], [])
    assert (broken / JOURNAL).read_bytes() == before


def test_a_journal_without_end_is_not_read(tmp_path):
    with (tmp_path / JOURNAL).open("wb") as file:
        file.truncate(2**40)  # of zeros, which take no room
    with pytest.raises(UserError, match="Its journal has more than 268435456 bytes"):
        read_search(tmp_path)


def test_without_optuna_that_is_said(searched, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    runs, searches, left_out = read_runs([searched])
    assert (len(runs), searches) == (2, [])
    assert "pip install 'opir-lightning[search]'" in {item.path: item.reason for item in left_out}[searched]


def test_two_searches_are_told_apart(searched, tmp_path):
    shutil.copytree(searched, tmp_path / "other")
    (trial_folder(tmp_path / "other", 1) / "results.json").unlink()
    runs, searches, _ = read_runs([searched.parent, tmp_path])
    assert [search.folder.name for search in searches] == ["demo", "other"]
    short = [search._replace(trials=search.trials[:1], importances={}) for search in searches]
    names = [plot.name for plots in parts(short) for plot in plots]
    assert len(set(names)) == len(names) > 1
    assert len(runs) == 4
