"""The benchmark of the operator convolution: that it measures, what it counts, and that it times nothing wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "bench_operator_conv"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    # Another study may have files of the same names.
    for name in [name for name, m in sys.modules.items() if str(getattr(m, "__file__", None)).startswith(str(FOLDER))]:
        del sys.modules[name]


@pytest.fixture
def cases(_path):
    import cases

    return cases


def square(cases, side, K, G, **options):
    return cases.Setting(1, 3, G, side, side, K, **options)


def test_a_run_writes_what_tables_and_figure_need(tmp_path, capsys):
    import bench
    import plot

    out, figure = tmp_path / "results.json", tmp_path / "figure.png"
    options = ("--device", "cpu", "--series", "small", "--side", 13, "--seconds", 0.001, "--out", out)
    assert bench.main([str(option) for option in options]) == 0
    assert "figures with a target were not measured" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["meta"]["copy_bytes_per_second"] > 1e8
    assert {"commit", "torch", "threads", "allocator", "processor", "date", "argv"} <= set(results["meta"])
    assert {case["status"] for case in results["cases"]} == {"timed"}
    ways = {case["way"] for case in results["cases"]}
    assert ways == {"reference", "shifted", "unfold + einsum", "unfold + multiply + sum", "conv2d, one kernel"}
    for case in results["cases"]:
        low, high = case["quartiles_ms"]
        assert 0 < low <= case["median_ms"] <= high
        expected = case["median_ms"] * 1e-3 * results["meta"]["copy_bytes_per_second"] / case["bytes"]
        assert case["copy_ratio"] == pytest.approx(expected, rel=1e-3)
        assert ("peak_bytes" in case) == (case["quantity"] != "backward")

    assert plot.main([str(out), "-o", str(figure)]) == 0
    printed = capsys.readouterr().out
    assert figure.stat().st_size > 10_000
    assert "| shifted |" in printed
    assert "1x3x13x13, K=5 shared" in printed


def test_a_mistyped_series_is_named_by_a_script_that_needs_no_installation():
    command = [sys.executable, str(FOLDER / "bench.py"), "--device", "cpu", "--series", "default", "mistyped"]
    source = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1] / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=source)
    assert done.returncode == 2
    assert "mistyped" in done.stderr
    assert "k-512" in done.stderr


def test_what_fails_parity_is_refused_and_not_timed(tmp_path, monkeypatch, cases):
    import runner
    import ways

    def one_percent_off(s, tensors):
        return ways.WAYS["shifted"].oracle(s, tensors) * 1.01

    def broken(s, tensors):
        raise RuntimeError("does not compile\nlong log")

    wrong = ways.WAYS["unfold + einsum"]._replace(value=one_percent_off)
    monkeypatch.setitem(ways.WAYS, "unfold + einsum", wrong)
    monkeypatch.setitem(ways.WAYS, "conv2d, one kernel", ways.WAYS["conv2d, one kernel"]._replace(value=broken))
    names = ("shifted", "unfold + einsum", "conv2d, one kernel")
    run = runner.Run("cpu", 0.001, 1, tmp_path / "results.json", {"copy_bytes_per_second": 1e9})
    run.series([cases.Series("one", "", names, (square(cases, 9, 3, 1),))])
    by = {way: [case for case in run.results["cases"] if case["way"] == way] for way in names}
    assert {case["status"] for case in by["shifted"]} == {"timed"}
    assert {case["status"] for case in by["unfold + einsum"]} == {"refused"}
    assert "result: relative error 1.00e-02" in by["unfold + einsum"][0]["reason"]
    assert {case["reason"] for case in by["conv2d, one kernel"]} == {"RuntimeError: does not compile"}
    assert len(run.wrong) == 6
    assert json.loads((tmp_path / "results.json").read_text()) == run.results


def test_without_the_fused_operator_its_counterpart_is_timed_alone(tmp_path, monkeypatch, cases):
    import runner

    monkeypatch.setitem(sys.modules, "opir_lightning.ops.predict_and_apply", None)
    names = ("fused, shifted", "projection + shifted")
    run = runner.Run("cpu", 0.001, 1, tmp_path / "results.json", {"copy_bytes_per_second": 1e9})
    run.series([cases.Series("one", "", names, (square(cases, 9, 3, 3, dilations=(1, 2), F=5),))])
    status = {case["way"]: case["status"] for case in run.results["cases"]}
    assert status == {"fused, shifted": "skipped", "projection + shifted": "timed"}
    assert run.wrong == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fused_operator_and_its_counterpart_agree_with_the_reference(cases, dtype):
    import parity
    import ways

    for name in ("fused, shifted", "projection + shifted"):
        s = square(cases, 9, 3, 3, dilations=(1, 2), F=5, taps=dtype)
        errors = parity.compare(ways.get_way(name), s, "cpu")
        assert {e.tensor.split()[0] for e in errors} == {"result", "features", "weight", "bias", "mix"}
        assert all(e.passed for e in errors), [str(e) for e in errors]


def test_no_unwritten_element_passes_parity(cases, monkeypatch):
    import parity
    import ways

    def forgets(s, tensors):
        result = torch.empty(s.B, len(s.dilations), s.C, s.H, s.W)
        right = ways.WAYS["shifted"].oracle(s, {name: tensor.detach() for name, tensor in tensors.items()})
        result[..., :-1] = right[..., :-1]
        return result + 0 * tensors["image"].sum() + 0 * tensors["taps"].sum()

    way = ways.WAYS["shifted"]._replace(value=forgets, backend="")
    assert "result" in (parity.failure(way, square(cases, 9, 3, 1), "cpu") or "")


def test_time_that_is_over_and_memory_that_is_short_are_reasons(tmp_path, monkeypatch, cases):
    import clock
    import runner

    series = [cases.Series("one", "", ("shifted", "unfold + einsum"), (square(cases, 32, 11, 3),))]
    late = runner.Run("cpu", 0.001, 0, tmp_path / "late.json", {"copy_bytes_per_second": 1e9})
    time.sleep(0.01)
    late.series(series)
    assert {case["reason"] for case in late.results["cases"]} == {"the 0 minutes were over"}

    monkeypatch.setattr(clock, "free_memory", lambda device: 10 * 2**20)
    short = runner.Run("cpu", 0.001, 1, tmp_path / "short.json", {"copy_bytes_per_second": 1e9})
    monkeypatch.setattr(clock, "rotating_sets", lambda size, device: 3)
    short.series(series)
    status = {(case["way"], case["quantity"]): case["status"] for case in short.results["cases"]}
    assert status["shifted", "forward + backward"] == "timed"
    assert status["unfold + einsum", "forward + backward"] == "skipped"
    assert short.wrong == []


def test_fewest_bytes_by_hand(cases):
    # Default operator, image float32, taps bfloat16: 27 taps of 2 bytes, 3 values of 4, results of 4 x 3 x 4.
    default = square(cases, 10, 3, 3, dilations=(1, 2, 3, 4), taps="bfloat16")
    per_pixel = {"forward": 54 + 12 + 48, "gradient of the taps": 48 + 12 + 54, "gradient of the image": 48 + 54 + 12}
    per_pixel |= {"backward": 48 + 12 + 54 + 54 + 12, "forward + backward": 114 + 180}
    for quantity, size in per_pixel.items():
        assert cases.fewest_bytes(default, quantity) == 100 * size, quantity
    # Predicted from 16 features of 2 bytes: 30 rows of 16 weights and a bias, 12 float32 numbers mix the dilations.
    predicted = default._replace(F=16)
    parameters = 30 * 17 * 2 + 12 * 4
    assert cases.fewest_bytes(predicted, "forward") == 100 * (12 + 32 + 12) + parameters
    assert cases.fewest_bytes(predicted, "backward") == 100 * (12 + 12 + 2 * 32) + 2 * parameters


def test_peak_memory_counts_what_is_held_at_once():
    import clock

    def run():
        temporary = torch.ones(2**20)  # 4 MiB, freed before the last
        kept = temporary * 2
        del temporary
        return kept, torch.ones(2**18)

    assert clock.peak_memory(run, "cpu") == pytest.approx(8 * 2**20, rel=0.001)


def test_needed_memory_is_an_upper_bound(cases):
    import clock
    import runner
    import ways

    for s in (square(cases, 96, 3, 3, dilations=(1, 2, 3, 4)), square(cases, 96, 7, 1, taps="bfloat16")):
        for name in ("reference", "shifted", "unfold + einsum", "unfold + multiply + sum", "conv2d, one kernel"):
            sets = [ways.make_tensors(s, "cpu", 0)]
            for make, training in ((runner._forward, False), (runner._training, True)):
                step = make(ways.get_way(name), s, sets)
                peak = clock.peak_memory(lambda step=step: step.run(0, clock.no_mark), "cpu")
                assert peak <= cases.needed_bytes(s, name, training), (str(s), name, training)


def test_targets_compare_medians_of_one_setting(cases):
    import targets

    s = square(cases, 512, 5, 1)

    def case(way, quantity, median, **more):
        common = {"series": "k-512", "setting": s._asdict(), "status": "timed", "quantity": quantity, "way": way}
        return {**common, "median_ms": median, "quartiles_ms": [median, median], "copy_ratio": 1.0, **more}

    shifted = case("shifted", "forward", 2.0, peak_bytes=4 * 3 * 512**2 * 4)
    results = {"meta": {"kind": "cpu"}, "cases": [shifted, case("unfold + einsum", "forward", 30.0)]}
    found = {t.name: t for t in targets.targets_of(json.loads(json.dumps(results))) if t.setting == s}
    faster = found["forward: shifted faster than unfold + einsum"]
    assert (faster.value, faster.passed) == (15.0, True)
    memory = found["forward: peak memory of shifted over the result's"]
    assert (memory.value, memory.passed) == (4.0, False)
    assert found["forward + backward: shifted faster than unfold + einsum"].passed is None


class OnTheCpu(TorchFunctionMode):
    """Puts on the CPU what is asked to be on CUDA."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


class Event:
    """A CUDA event by the host's clock."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, later):
        return (later.at - self.at) * 1e3


def test_the_cuda_path_with_a_stand_in_for_the_device(tmp_path, monkeypatch, cases):
    """Events, single gradients, the host's time: all but the device itself."""
    import clock
    import runner

    cpu_generator = torch.Generator
    for name, value in {
        "cuda.Event": Event,
        "cuda.synchronize": lambda: None,
        "cuda.memory_allocated": lambda: 0,
        "cuda.max_memory_allocated": lambda: 1,
        "cuda.reset_peak_memory_stats": lambda: None,
        "Generator": lambda device: cpu_generator(),
    }.items():
        monkeypatch.setattr(f"torch.{name}", value)
    monkeypatch.setattr(clock, "free_memory", lambda device: 2**30)
    monkeypatch.setattr(clock, "rotating_sets", lambda size, device: 3)
    monkeypatch.setattr(clock._Ahead, "queue", lambda self: None)
    run = runner.Run("cuda", 0.001, 1, tmp_path / "results.json", {"copy_bytes_per_second": 1e9})
    names = ("shifted", "unfold + multiply + sum")
    with OnTheCpu():
        run.series([cases.Series("one", "", names, (square(cases, 9, 3, 1, taps="bfloat16"),))])
    assert run.wrong == []
    quantities = ["forward", "forward + backward", "backward", "gradient of the taps", "gradient of the image"]
    timed = [(case["way"], case["quantity"]) for case in run.results["cases"] if case["status"] == "timed"]
    assert sorted(timed) == sorted([*((names[0], q) for q in quantities), *((names[1], q) for q in quantities[:3])])
    assert all(case["repeats"] >= 12 for case in run.results["cases"])
    whole = [case for case in run.results["cases"] if case["quantity"] != "backward"]
    assert all(case["host_ms"] > 0 and case["peak_bytes"] == 1 for case in whole)
