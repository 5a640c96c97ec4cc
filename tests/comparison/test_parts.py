"""What a comparison is made of: settings, names, groups, intervals, escaping, the form of an offline log."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from opir_lightning.comparison.csv_text import csv_text
from opir_lightning.comparison.finding import read_runs
from opir_lightning.comparison.groups import Group, compared_sets, group_runs
from opir_lightning.comparison.offline import read_log
from opir_lightning.comparison.runs import Run
from opir_lightning.comparison.scores import SetKey, SetScores, read_sets
from opir_lightning.comparison.settings import name_groups, resolve, telling
from opir_lightning.comparison.statistics import bootstrap_interval, damaged_sets, mean_summary, paired, summary
from opir_lightning.comparison.tables import Cell, Table, escape_latex, escape_markdown, latex, score_tables
from opir_lightning.errors import UserError

NOISE, CLEAN = SetKey("validation", "noise"), SetKey("validation", "undamaged")


def scored(psnr: float | None, pictures: dict[str, tuple[float, float]] | None = None, before: float | None = 20.0):
    """Scores of a set; of pictures the input's and the result's PSNR."""
    by_name = {n: {"published": {"psnr_input": i, "psnr": p}} for n, (i, p) in (pictures or {}).items()}
    return SetScores({"published": {"psnr_input": before, "psnr": psnr}}, by_name)


def made(name: str, seed: int | None, sets: dict, commit: str = "", **settings) -> Run:
    return Run(Path(name), "training", seed, settings, {}, {}, sets, meta={"commit": commit})


def test_references_are_filled_in_and_nothing_else():
    config = {
        "data": {"crop": 64, "tasks": "${tasks}", "seed": "${seed}"},
        "tasks": ["none", "noise"],
        "seed": 3,
        "crop": "${data.crop}",
        "label": "${name}-seed${seed}",
        "name": "rain",
        "secret": "${oc.env:HOME}",
        "lost": "${nowhere.at_all}",
    }
    done = resolve(config)
    assert done["data"] == {"crop": 64, "tasks": ["none", "noise"], "seed": 3}
    assert (done["crop"], done["label"]) == (64, "rain-seed3")
    assert (done["secret"], done["lost"]) == ("${oc.env:HOME}", "${nowhere.at_all}")
    with pytest.raises(UserError, match="circle"):
        resolve({"a": "${b}", "b": "x${a}"})


def test_seed_folders_and_display_tell_no_runs_apart_and_the_rest_does():
    base = {
        "seed": 0,
        "run_dir": "a",
        "threads": 1,
        "logger": {"csv": {"save_dir": "a"}},
        "data": {"seed": 0, "crop": 64},
    }
    same = {
        **base,
        "seed": 1,
        "run_dir": "b",
        "threads": 2,
        "logger": {},
        "data": {"seed": 1, "crop": 64, "workers": 4},
    }
    assert telling(base) == telling(same) == {"data.crop": 64}
    for name, value in (("data", {"crop": 32}), ("task_code", "label"), ("model", {"_target_": "mine.Net"})):
        assert telling({**base, name: value}) != telling(base)


def test_groups_are_named_by_what_sets_them_apart():
    def named(*groups, choices=None):
        return name_groups(groups, choices or [{} for _ in groups])

    assert named({"name": "a", "x.k": 3}) == ["a"]
    assert named({"name": "a", "x.k": 3}, {"name": "a", "x.k": 5}) == ["k=3", "k=5"]
    assert named({"name": "a", "x.k": 3}, {"name": "b", "x.k": 5}) == ["a", "b"]
    # one that follows another one is told once; the same last part needs its parent
    assert named({"d.crop": 32, "m.code_crop": 32}, {"d.crop": 64, "m.code_crop": 64}) == ["crop=32", "crop=64"]
    assert named({"a.lr": 1, "b.lr": 1}, {"a.lr": 2, "b.lr": 1}, {"a.lr": 1, "b.lr": 2}) == [
        "a.lr=1, b.lr=1", "a.lr=2, b.lr=1", "a.lr=1, b.lr=2",
    ]  # fmt: skip
    # a chosen file stands for all that it sets
    tiny, small = {"model.width": 24, "model.features": 16, "k": 1}, {"model.width": 48, "model.features": 32, "k": 1}
    choices = [{"model": "opir_tiny"}, {"model": "opir_small"}]
    assert named(tiny, small, choices=choices) == ["model=opir_tiny", "model=opir_small"]
    assert named(tiny, small, {**small, "model.width": 8}, choices=[*choices, choices[1]])[2].startswith("width=8")
    long = named({f"setting_{i}": 1 for i in range(20)}, {f"setting_{i}": i for i in range(20)})
    assert all(len(name) < 80 for name in long)
    assert len(set(long)) == 2


def test_repetitions_are_left_out_unless_the_code_has_changed():
    runs = [made("a", 0, {NOISE: scored(25)}, k=1), made("b", 1, {NOISE: scored(26)}, k=1)]
    test = made("eval", 0, {SetKey("test", "Rain100L"): scored(30)}, k=1)
    again = made("again", 1, {NOISE: scored(27)}, k=1)
    (group,), left_out = group_runs([*runs, test, again])
    assert [run.path.name for run in group.runs] == ["a", "eval", "b"]
    assert [item.path.name for item in left_out] == ["again"]
    newer = [made(f"new-{r.path}", r.seed, r.sets, commit="bbb", k=1) for r in runs]
    older = [made(f"old-{r.path}", r.seed, r.sets, commit="aaa", k=1) for r in runs]
    groups, left_out = group_runs([*older, *newer])
    assert [(g.name, len(g.runs)) for g in groups] == [("commit=aaa", 2), ("commit=bbb", 2)]
    assert left_out == []
    (mixed,), _ = group_runs([older[0], newer[1]])  # other seeds of a later commit go on with the group
    assert mixed.seeds == [0, 1]


def test_a_null_psnr_is_infinite_only_beside_a_finite_ssim():
    sets = read_sets(
        {"a": {"published": {"psnr": None, "ssim": 1.0}}, "b": {"published": {"psnr": None, "ssim": None}}}, "test"
    )
    assert sets[SetKey("test", "a")].means["published"] == {"psnr": None, "ssim": 1.0}
    assert sets[SetKey("test", "b")].means["published"] == {}  # both were no numbers: the run diverged
    assert read_sets({"a": "text", "b": {"published": {"psnr": "<b>"}}}, "test")[SetKey("test", "b")].means == {
        "published": {}
    }


def test_means_leave_out_undamaged_sets_and_runs_without_all_of_the_sets():
    rain = SetKey("validation", "rain")
    both = {NOISE: scored(25), rain: scored(21), CLEAN: scored(40, before=None)}
    group = Group(
        "g", [made("a", 0, both), made("b", 1, {**both, NOISE: scored(28)}), made("c", 2, {NOISE: scored(50)})], {}
    )
    keys = compared_sets([group])
    assert damaged_sets([group], keys, "published") == [NOISE, rain]
    mean = mean_summary(group, [NOISE, rain], "published", "psnr")
    assert mean is not None
    assert (mean.mean, mean.n) == (pytest.approx(23.75), 2)
    assert mean.std == pytest.approx(1.5 / math.sqrt(2))
    perfect = Group("p", [made("a", 0, {CLEAN: scored(None, before=None)})], {})
    assert summary(perfect, CLEAN, "published", "psnr") == (math.inf, None, 1)


def test_pictures_are_paired_by_name_and_input():
    first = Group(
        "a", [made("a", 0, {NOISE: scored(0, {"x": (20, 25), "y": (21, 26), "z": (19, 30), "w": (20, 20)})})], {}
    )
    # the same in another order, z with another input, w missing, v new; and a second seed
    pictures = {"z": (18, 31), "y": (21, 25), "x": (20.01, 27), "v": (20, 20)}
    later = {name: (before, after + 1) for name, (before, after) in pictures.items()}
    second = Group("b", [made("b", 0, {NOISE: scored(0, pictures)}), made("c", 1, {NOISE: scored(0, later)})], {})
    by_name, unpaired = paired(second, first, NOISE, "published", "psnr")
    assert by_name == {"y": pytest.approx(-0.5), "x": pytest.approx(2.5)}
    assert unpaired == 3


def test_the_interval_covers_a_known_difference_as_often_as_it_says():
    draws = np.random.default_rng(1)
    hits, widths = 0, []
    for _ in range(25):
        low, high = bootstrap_interval(draws.normal(0.3, 0.5, 30))
        hits += low <= 0.3 <= high
        widths.append(high - low)
    assert hits >= 20  # 23 or 24 expected; fewer than 20 have a chance of 1 in 300 at the 94 % that n = 30 gives
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(30), rel=0.1)
    skewed = draws.exponential(1, 40)
    assert bootstrap_interval(skewed) == bootstrap_interval(skewed)
    low, high = bootstrap_interval(skewed)
    assert high - skewed.mean() > skewed.mean() - low  # it leans to where the tail is
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    low, high = bootstrap_interval([0.0, 1.0])
    assert 0 <= low < high <= 1


def test_values_that_read_the_same_are_best_together():
    def group(name, psnr):
        return Group(name, [made(name, 0, {NOISE: scored(psnr)}, k=name)], {})

    (table, *_) = score_tables([group("a", 25.001), group("b", 25.004), group("c", 24.99)], [NOISE], "published")
    assert [row[2].best for row in table.rows] == [True, True, False]
    (alone, *_) = score_tables([group("a", 25.0)], [NOISE], "published")
    assert not alone.rows[0][2].best


def test_escaping():
    assert escape_latex(r"50 % of $x_1$ & {a} #1 ~^\ <b>±∞") == (
        r"50 \% of \$x\_1\$ \& \{a\} \#1 \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}b\textgreater{}$\pm$$\infty$"
    )
    assert escape_markdown("a|b *c* _d_ `e` <i>\n[f]") == r"a\|b \*c\* \_d\_ \`e\` &lt;i&gt; \[f\]"
    table = Table(
        "T_1", ["a_b", "c"], [[Cell("x&y"), Cell("1.00 ± 0.10", 1.0, best=True)]], last=[Cell("in"), Cell("∞")]
    )
    assert latex(table).splitlines()[4:11] == [
        r"\toprule",
        r"a\_b & c \\",
        r"\midrule",
        r"x\&y & \textbf{1.00 $\pm$ 0.10} \\",
        r"\midrule",
        r"in & $\infty$ \\",
        r"\bottomrule",
    ]


def test_no_text_of_a_csv_file_is_a_formula_and_it_reads_back_as_it_was():
    cells = [
        "=1+1",
        "+a",
        "-b",
        "@SUM(A1)",
        "\t=1",
        "\r\n-x",
        "＝1",
        "'=1",
        "''@",
        "'quoted'",
        "a=1, 2",
        "one\rtwo",
        "-",
    ]
    numbers = [-0.5, 3, None, "-0.25", "+1e-05", "-3."]
    (read,) = csv.reader(io.StringIO(csv_text([[*cells, *numbers]]), newline=""))
    assert read[len(cells) :] == ["-0.5", "3", "", "-0.25", "+1e-05", "-3."]
    assert not any(cell.startswith(tuple("=+-@\t\r\n＝")) for cell in read[: len(cells)])
    assert [re.sub(r"^'('*[=+\-@\t\r\n＝])", r"\1", cell) for cell in read[: len(cells)]] == cells
    assert read[9:12] == cells[9:12]


def offline_log(folder: Path, records: list, *, torn: int = 0) -> Path:
    """An offline run with these records, framed as Weights & Biases does it; ``torn`` bytes are cut off its end."""
    content = bytearray(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    for record in records:
        data, first = record.SerializeToString(), True
        while True:
            left = 32768 - len(content) % 32768
            if left < 7:
                content += bytes(left)
                continue
            piece, data = data[: left - 7], data[left - 7 :]
            kind = (1 if first else 4) if not data else (2 if first else 3)
            content += struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece
            first = False
            if not data:
                break
    folder.mkdir()
    (folder / "run-x.wandb").write_bytes(content[: len(content) - torn])
    return folder


def wandb_records(config: dict, rows: list[dict]) -> list:
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    records = [
        pb.Record(
            config=pb.ConfigRecord(update=[pb.ConfigItem(key=k, value_json=json.dumps(v)) for k, v in config.items()])
        )
    ]
    for row in rows:
        items = [pb.HistoryItem(nested_key=[k], value_json=json.dumps(v)) for k, v in row.items()]
        records.append(pb.Record(history=pb.HistoryRecord(item=items)))
    return [*records, pb.Record(exit=pb.RunExitRecord(exit_code=0))]


def test_an_offline_log_is_read_over_the_edges_of_its_blocks(tmp_path):
    config = {"model": {"width": 8}, "seed": 4, "task_code": "blind", "note": "x" * 70_000}
    rows = [
        {
            "val/psnr": 20.0 + step / 100,
            "val/noise/psnr": 21.0,
            "val/noise/psnr_input": "Infinity",
            "trainer/global_step": step,
        }
        for step in range(400)
    ]
    whole = offline_log(tmp_path / "offline-run-1", wandb_records(config, rows))
    (run,), _, left_out = read_runs([tmp_path])
    assert left_out == []
    assert (run.kind, run.seed, run.settings["model.width"]) == ("Weights & Biases", 4, 8)
    assert run.curve[0] == (1, 20.0)
    assert run.curve[-1] == (400, pytest.approx(23.99))
    assert run.sets[SetKey("while training", "noise")].means["published"] == {"psnr": 21.0, "psnr_input": None}

    torn = offline_log(tmp_path / "offline-run-2", wandb_records(config, rows), torn=3)
    damaged = offline_log(tmp_path / "offline-run-3", wandb_records(config, rows))
    content = bytearray((damaged / "run-x.wandb").read_bytes())
    content[40_000] ^= 1
    (damaged / "run-x.wandb").write_bytes(content)
    assert len(read_log(torn / "run-x.wandb").history) == 400
    runs, _, left_out = read_runs([whole, torn, damaged])
    assert len(runs) == 1
    reasons = {item.path.name: item.reason for item in left_out}
    assert "not finished" in reasons["offline-run-2"]
    assert "wrong checksum" in reasons["offline-run-3"]
