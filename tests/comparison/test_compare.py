"""Real runs compared by the command: numbers, page, pictures, and what is broken."""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from opir_lightning.checkpoints import load_model
from opir_lightning.compare import main
from opir_lightning.comparison.report import Options, compare
from opir_lightning.comparison.runs import read_run
from opir_lightning.complexity import count
from opir_lightning.config import config_dir
from opir_lightning.evaluate import evaluate

NAMES = ["kernel_size=3", "kernel_size=5"]


@pytest.fixture(scope="module")
def compared(sweep, tmp_path_factory):
    """The sweep compared once: what came out, and the folder with it."""
    folder = tmp_path_factory.mktemp("comparison")
    return compare([sweep], Options(folder, pictures=2)), folder


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())["sets"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def change(run: Path, **settings) -> None:
    """Set top-level keys, or with ``a__b`` those below, in the configuration of a run."""
    path = run / "config" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for name, value in settings.items():
        *parents, last = name.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def test_runs_are_grouped_over_seeds_and_named_by_what_differs(compared):
    done, _ = compared
    assert [(group.name, group.seeds) for group in done.groups] == [(NAMES[0], [0, 1]), (NAMES[1], [0])]
    assert done.left_out == []


def test_the_tables_hold_mean_and_sample_deviation_over_seeds(sweep, compared):
    done, folder = compared
    scores = {(r["group"], r["set"], r["profile"], r["score"]): r for r in rows(folder / "scores.csv")}
    for name in ("noise", "haze"):
        for profile, score in (("published", "psnr"), ("published", "psnr_coarse"), ("full", "ssim")):
            values = [results(sweep / job)[name][profile][score] for job in "01"]
            row = scores[NAMES[0], name, profile, score]
            assert float(row["mean"]) == pytest.approx(sum(values) / 2, rel=1e-5)
            assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2), rel=1e-4)
            alone = scores[NAMES[1], name, profile, score]
            assert float(alone["mean"]) == pytest.approx(results(sweep / "2")[name][profile][score], rel=1e-5)
            assert alone["std"] == ""
    assert scores[NAMES[0], "undamaged", "published", "psnr_input"]["mean"] == "inf"
    assert len(rows(folder / "runs.csv")) == sum(int(row["runs"]) for row in scores.values())

    stage_2 = next(table for table in done.tables if table.title == "PSNR in dB, stage 2, validation sets")
    assert stage_2.columns == ["group", "runs", "undamaged", "noise", "haze", "mean"]
    means = {}
    for row, jobs in zip(stage_2.rows, ("01", "2"), strict=True):
        per_run = [statistics.mean(results(sweep / j)[s]["published"]["psnr"] for s in ("noise", "haze")) for j in jobs]
        means[row[0].text] = statistics.mean(per_run)
        assert row[-1].text.startswith(f"{means[row[0].text]:.2f}")
    best = max(means, key=means.__getitem__)
    assert [row[0].text for row in stage_2.rows if row[-1].best] == [best]
    assert f"**{means[best]:.2f}" in (folder / "tables.md").read_text()
    assert rf"\textbf{{{means[best]:.2f}" in (folder / "tables.tex").read_text()
    assert stage_2.last[2].text == "∞"


def test_differences_are_those_of_the_same_pictures_averaged_over_seeds(sweep, compared):
    _, folder = compared
    found = {(r["set"], r["score"]): r for r in rows(folder / "differences.csv")}
    for name in ("undamaged", "noise", "haze"):
        by_job = [results(sweep / job)[name]["pictures"] for job in "012"]
        values = [
            by_job[2][p]["published"]["psnr"]
            - (by_job[0][p]["published"]["psnr"] + by_job[1][p]["published"]["psnr"]) / 2
            for p in by_job[0]
        ]
        row = found[name, "psnr"]
        assert (row["group"], row["reference"], row["pictures"]) == (NAMES[1], NAMES[0], "3")
        assert float(row["mean"]) == pytest.approx(statistics.mean(values), abs=1e-4)
        assert min(values) - 1e-4 <= float(row["low"]) <= float(row["mean"]) <= float(row["high"]) <= max(values) + 1e-4
        assert float(row["better"]) == pytest.approx(sum(v > 0 for v in values) / 3, abs=1e-3)


def test_the_costs_are_those_of_the_runs_network(sweep, compared):
    done, _ = compared
    net, _ = load_model(sweep / "2")
    parameters, macs = count(net, 256)
    row = done.tables[0].rows[1]
    assert [row[4].number, row[5].number] == [pytest.approx(parameters / 1e6), pytest.approx(macs / 1e9)]


def test_the_page_asks_for_nothing_and_shows_the_pictures_that_were_scored(sweep, compared):
    _, folder = compared
    page = (folder / "index.html").read_text()
    links = re.findall(r"""(?:src|href|action|data|url\()\s*=?\s*["'(]([^"')]*)""", page)
    assert links
    assert all(link.startswith(("data:", "#part")) for link in links)
    assert "http:" not in page
    assert "https:" not in page
    drawn = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(drawn) == 4  # bars of PSNR and SSIM, PSNR against MACs, curves
    assert all(base64.b64decode(svg).startswith(b"<?xml") for svg in drawn)
    shown = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    assert len(shown) == 2 * 8
    with Image.open(io.BytesIO(base64.b64decode(shown[0]))) as picture:
        assert picture.size == (64, 64)
    assert "Not shown" not in page
    for number, words in re.findall(r"<h3>\w+ \(validation\): (\w+)</h3>.*?<figcaption>(.*?)</figcaption>", page, re.S):
        scored = [
            results(sweep / job)[s]["pictures"][number]["published"]["psnr"]
            for job in "02"
            for s in results(sweep / job)
        ]
        said = [float(value) for value in re.findall(r": (\d+\.\d+) dB", words)]
        assert len(said) == 2
        assert all(min(abs(value - s) for s in scored) < 0.011 for value in said)


@pytest.mark.usefixtures("no_plots")
def test_another_reference_turns_the_differences_round(sweep, compared, tmp_path):
    _, folder = compared
    assert main([str(sweep), "-o", str(tmp_path), "--against", str(sweep / "2"), "--pictures", "0"]) == 0
    forth, back = rows(folder / "differences.csv"), rows(tmp_path / "differences.csv")
    assert [float(r["mean"]) for r in back] == pytest.approx([-float(r["mean"]) for r in forth], abs=1e-6)
    assert {r["group"] for r in back} == {NAMES[0]}


@pytest.mark.usefixtures("no_plots")
def test_what_is_broken_or_unfinished_is_named_and_the_rest_compared(sweep, tmp_path, capsys):
    unfinished = copied(sweep / "0", tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    torn = copied(sweep / "0", tmp_path / "torn")
    (torn / "results.json").write_text('{"sets": {"noise"')
    strange = copied(sweep / "0", tmp_path / "strange")
    (strange / "config" / "config.yaml").write_text("- !!python/object/apply:os.getcwd []")
    circle = copied(sweep / "0", tmp_path / "circle")
    change(circle, model__width="${model.features}", model__features="${model.width}")
    again = copied(sweep / "2", tmp_path / "again")
    (tmp_path / "empty").mkdir()
    folders = [unfinished, torn, strange, circle, again, tmp_path / "empty", tmp_path / "nowhere"]
    assert main([str(sweep), *map(str, folders), "-o", str(tmp_path / "out"), "--pictures", "0"]) == 0
    said = dict(re.findall(r"left out: (\S+): (.+)", capsys.readouterr().err))
    assert (
        said[str(unfinished)]
        == "The training is not finished: it has no results.json; step 4 of 4 is the last in its log."
    )
    assert said[str(torn)] == "Its results.json is damaged: it is no JSON."
    assert "cannot be read as YAML" in said[str(strange)]
    assert "in a circle" in said[str(circle)]
    assert f"the settings and the seed of '{sweep / '2'}'" in said[str(again)]
    assert "no run in it" in said[str(tmp_path / "empty")]
    assert said[str(tmp_path / "nowhere")] == "there is no such folder"
    page = (tmp_path / "out" / "index.html").read_text()
    assert all(str(folder) in page for folder in folders)


def test_nothing_finished_an_unknown_reference_and_a_missing_package_are_one_sentence(
    sweep, tmp_path, capsys, monkeypatch
):
    for arguments, said in (
        ([str(tmp_path)], "There is no finished run to compare"),
        (
            [str(sweep), "--against", "kernel_size=7"],
            "neither the folder of a compared run nor a group: 'kernel_size=3'",
        ),
    ):
        assert main([*arguments, "-o", str(tmp_path / "out")]) == 1
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert said in err
    assert not (tmp_path / "out").exists()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else found(name, *a))
    assert main([str(sweep)]) == 1
    assert "matplotlib: pip install 'opir-lightning[compare]'" in capsys.readouterr().err


@pytest.mark.usefixtures("no_plots")
def test_a_folder_that_cannot_be_written_to_is_one_sentence(sweep, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert main([str(sweep), "--pictures", "0", "-o", str(tmp_path / "file" / "out")]) == 1
    assert f"error: '{tmp_path}/file/out/index.html' cannot be written (Not a directory);" in capsys.readouterr().err


def test_what_runs_say_is_only_ever_text(sweep, tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    other = copied(sweep / "2", tmp_path / "other")
    change(other, task_lr_factor=evil)
    content = json.loads((other / "results.json").read_text())
    content["sets"][evil] = content["sets"]["noise"]
    content["meta"]["device"] = evil
    (other / "results.json").write_text(json.dumps(content))
    compare([sweep, other], Options(tmp_path / "out", pictures=0))
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<script") == 1  # the page's own
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;") > 3
    assert "<script" not in (tmp_path / "out" / "tables.md").read_text()


@pytest.mark.usefixtures("no_plots")
def test_no_class_but_those_of_this_program_is_built_from_a_runs_settings(sweep, tmp_path):
    trap = tmp_path / "sprung"
    call = {"_target_": "pathlib.Path.touch", "self": str(trap)}
    other = copied(sweep / "2", tmp_path / "other")
    change(other, model__width=16, data__val__noise__degradation=call, data__val__haze=call, model___target_="os.mkdir")
    (other / "model.safetensors").unlink()
    done = compare([sweep / "0", other], Options(tmp_path / "out", pictures=1))
    assert not trap.exists()
    assert "only opir_lightning.models.OPIR is built" in " ".join(done.warnings)
    shutil.copy(sweep / "2" / "model.safetensors", other)
    compare([other, sweep / "0"], Options(tmp_path / "out", pictures=3))
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("is no source or degradation of this program") == 2
    assert page.count("<h3>undamaged (validation)") == 1
    assert not trap.exists()


@pytest.mark.usefixtures("no_plots")
def test_pictures_of_weights_that_are_gone_or_changed_are_not_shown_and_that_is_said(sweep, tmp_path):
    other = copied(sweep / "2", tmp_path / "other")
    shutil.copy(sweep / "1" / "model.safetensors", other)
    compare([sweep / "0", other], Options(tmp_path / "out", pictures=1))
    assert "weights or data have changed" in (tmp_path / "out" / "index.html").read_text()
    (other / "model.safetensors").unlink()
    compare([sweep / "0", other], Options(tmp_path / "out", pictures=1))
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"The weights of &#x27;{other}&#x27; are not there any more" in page
    assert "image/webp" not in page


@pytest.mark.usefixtures("no_plots")
def test_other_degraded_pictures_are_not_compared(sweep, tmp_path):
    other = copied(sweep / "2", tmp_path / "other")
    content = json.loads((other / "results.json").read_text())
    noise = content["sets"]["noise"]
    for scores in (noise, *noise["pictures"].values()):
        scores["published"]["psnr_input"] += 1.5
    (other / "results.json").write_text(json.dumps(content))
    done = compare([sweep / "0", other], Options(tmp_path / "out", pictures=0))
    assert {d.key.name for d in done.differences} == {"undamaged", "haze"}
    assert any("of the set noise (validation) are not the same in all runs" in warning for warning in done.warnings)


def evaluated(weights: Path, folder: Path, root: Path, *overrides: str) -> Path:
    """Score weights on a test set, with the configuration beside the results that the command leaves there."""
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("evaluate", [f"checkpoint={weights}", f"data.root={root}", f"run_dir={folder}", *overrides])
    (folder / "config").mkdir(parents=True)
    OmegaConf.save(config, folder / "config" / "config.yaml")
    evaluate(config)
    return folder


@pytest.mark.usefixtures("no_plots")
def test_an_evaluation_goes_with_the_training_of_its_weights(sweep, tmp_path):
    root = tmp_path / "sets"
    shutil.copytree(
        Path(yaml.safe_load((sweep / "0/config/config.yaml").read_text())["data"]["root"]) / "BSD-val-rest",
        root / "CBSD68",
    )
    only = "sets=[CBSD68-sigma25]"
    tests = [evaluated(sweep / job / "model.safetensors", tmp_path / f"test{job}", root, only) for job in "012"]
    told = evaluated(sweep / "0", tmp_path / "told", root, only, "task_code=label")
    done = compare([sweep, *tests, told], Options(tmp_path / "out", pictures=4))
    assert [(len(g.runs), g.seeds) for g in done.groups] == [(4, [0, 1]), (2, [0]), (1, [0])]
    assert done.groups[2].settings["evaluated with task_code"] == "label"
    table = next(table for table in done.tables if table.title == "PSNR in dB, stage 2, test sets")
    values = [results(test)["CBSD68-sigma25"]["published"]["psnr"] for test in tests]
    assert [row[2].number for row in table.rows[:2]] == pytest.approx([(values[0] + values[1]) / 2, values[2]])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<h3>CBSD68-sigma25 (test): " in page
    assert "Not shown" not in page


@pytest.mark.slow
def test_a_real_offline_log_tells_what_the_run_folder_tells(sweep, train_run, tmp_path):
    wandb = pytest.importorskip("wandb")
    root = yaml.safe_load((sweep / "0/config/config.yaml").read_text())["data"]["root"]
    folder = train_run(tmp_path / "run", Path(root), "logger=wandb", "logger.wandb.offline=true", "model.kernel_size=3")
    wandb.finish()
    (offline,) = (folder / "wandb").glob("offline-run-*")
    wandb.teardown()  # its service writes the end of the log a little after the run has ended
    done = compare([offline, sweep / "1", sweep / "2"], Options(tmp_path / "out", pictures=0))
    assert [(g.name, g.seeds) for g in done.groups] == [(NAMES[0], [0, 1]), (NAMES[1], [0])]
    logged, same = done.groups[0].runs[0], read_run(sweep / "0")
    assert logged.kind == "Weights & Biases"
    assert [step for step, _ in logged.curve] == [step for step, _ in same.curve]
    assert [psnr for _, psnr in logged.curve] == pytest.approx([psnr for _, psnr in same.curve], abs=1e-3)
    for key in logged.sets:
        ours, theirs = (run.sets[key].means["published"]["psnr"] for run in (logged, same))
        assert ours == pytest.approx(theirs, abs=1e-3)
    both = compare([folder, offline], Options(tmp_path / "out", pictures=0))
    assert "whose folder tells more" in both.left_out[0].reason


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom opir_lightning.compare import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch','matplotlib','scipy','lightning','hydra','wandb','yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
