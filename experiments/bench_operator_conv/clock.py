"""Time, memory and bandwidth, on the CPU and on a CUDA device.

What is compared is measured in turns (A B A B): a machine that slows down slows down for all. Input sets rotate, and
together they are larger than the caches. Medians and quartiles are over single samples.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

Mark = Callable[[], None]

ROUNDS = 3  # turns on CUDA
FEWEST, MOST = 12, 300  # samples on CUDA
SLOW = 1.0  # seconds; what takes longer gets a sample a turn
ROTATING_SETS = 3, 32  # at least, at most


class Step(NamedTuple):
    """Something to time.

    Attributes:
        name: of the way.
        parts: name of the time of each part of the work, and "" for a part that is not reported on its own.
        whole: name of the time of all parts together.
        run: does the work on input set ``i``, calling ``mark`` between one part and the next. What it returns is kept
            until the clock has stopped: giving memory back is not part of the work.
    """

    name: str
    parts: tuple[str, ...]
    whole: str
    run: Callable[[int, Mark], object]


class Timing(NamedTuple):
    """Seconds: median, quartiles; samples taken; on CUDA the host's share, the time until all is queued."""

    median: float
    low: float
    high: float
    repeats: int
    host: float | None = None


def measure(steps: Sequence[Step], device: str, seconds: float) -> dict[str, dict[str, Timing]]:
    """Time of each part and of the whole of each step, by names; about ``seconds`` for each.

    Each step has run once before: its kernels are compiled, the threads have started.
    """
    gc.collect()
    gc.disable()
    try:
        samples, host = _cuda_samples(steps, seconds) if device == "cuda" else _cpu_samples(steps, seconds)
    finally:
        gc.enable()
    timings = {}
    for step in steps:
        of_step = {step.whole: _timing([sum(parts) for parts in samples[step.name]], host.get(step.name))}
        if len(step.parts) > 1:
            for part, name in enumerate(step.parts):
                if name:
                    of_step[name] = _timing([parts[part] for parts in samples[step.name]], None)
        timings[step.name] = of_step
    return timings


def _timing(samples: list[float], host: float | None) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, len(samples), host)


def _cpu_samples(steps: Sequence[Step], seconds: float) -> tuple[dict[str, list[list[float]]], dict[str, float]]:
    """Turns until the slowest step has had 4 times ``seconds`` or 10 samples, at least 3; fast steps get more a turn.

    A fast step's samples of a turn take a fifth of ``seconds`` and are 20 at most.
    """
    samples: dict[str, list[list[float]]] = {step.name: [] for step in steps}
    expected = {}
    for step in steps:
        expected[step.name] = sum(_cpu_sample(step, 0))
    turns = min(10, max(3, math.ceil(4 * seconds / max(expected.values()))))
    for turn in range(turns):
        for step in steps:
            for n in range(min(20, max(1, round(seconds / 5 / expected[step.name])))):
                samples[step.name].append(_cpu_sample(step, turn + n))
    return samples, {}


def _cpu_sample(step: Step, n: int) -> list[float]:
    marks = [time.perf_counter()]
    kept = step.run(n, lambda: marks.append(time.perf_counter()))
    marks.append(time.perf_counter())
    del kept
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def _cuda_samples(steps: Sequence[Step], seconds: float) -> tuple[dict[str, list[list[float]]], dict[str, float]]:
    samples: dict[str, list[list[float]]] = {step.name: [] for step in steps}
    host: dict[str, list[float]] = {step.name: [] for step in steps}
    ahead = _Ahead()
    plan = {}
    for step in steps:
        for n in range(2):
            step.run(n, no_mark)  # first use: kernels are loaded, memory is taken
        expected = sum(_cuda_batch(step, 0, 2, 1, ahead)[0][-1])
        # A step of one part is repeated between two events, so that the gap between them does not count.
        inner = 1 if len(step.parts) > 1 else min(20, max(1, math.ceil(1e-3 / expected)))
        count = min(MOST, max(FEWEST if expected < SLOW else ROUNDS, math.ceil(seconds / (inner * expected))))
        plan[step.name] = math.ceil(count / ROUNDS), inner
        _cuda_batch(step, 0, min(10, math.ceil(0.02 / (inner * expected))), inner, ahead)  # the clock rate rises
    for turn in range(ROUNDS):
        for step in steps:
            count, inner = plan[step.name]
            taken, queued = _cuda_batch(step, turn, count, inner, ahead)
            samples[step.name] += taken
            host[step.name].append(queued)
    return samples, {name: statistics.median(times) for name, times in host.items()}


def _cuda_batch(step: Step, first: int, count: int, inner: int, ahead: _Ahead) -> tuple[list[list[float]], float]:
    """``count`` samples, each the mean of ``inner`` runs between two events; the host's seconds to queue one run."""
    marks: list[list[Any]] = []

    def mark() -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        marks[-1].append(event)

    torch.cuda.synchronize()
    ahead.queue()
    start = time.perf_counter()
    for n in range(count):
        marks.append([])
        mark()
        for repeat in range(inner):
            kept = step.run(first + n * inner + repeat, mark if inner == 1 else no_mark)
        mark()
    del kept
    host = (time.perf_counter() - start) / (count * inner)
    torch.cuda.synchronize()
    return [
        [earlier.elapsed_time(later) * 1e-3 / inner for earlier, later in itertools.pairwise(events)]
        for events in marks
    ], host


def no_mark() -> None:
    """For work that is done without a clock."""


class _Ahead:
    """Work of some milliseconds that is queued first: the host gets ahead, and its launches do not count.

    They still do where a run takes the host longer than the device, as small pictures do; ``host`` tells.
    """

    def __init__(self) -> None:
        self.source = torch.ones(2**28, dtype=torch.uint8, device="cuda")
        self.target = torch.empty_like(self.source)

    def queue(self) -> None:
        for _ in range(20):
            self.target.copy_(self.source)


def copy_bandwidth(device: str, seconds: float) -> float:
    """Bytes per second of a copy within the device's memory, read and written bytes counted.

    The buffers are a quarter of a GiB each on the CPU and a GiB each on CUDA: many times the caches.
    """
    size = 2**28 if device == "cpu" else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def run(n: int, mark: Mark) -> object:
        return target.copy_(source)

    step = Step("copy", ("",), "copy", run)
    return 2 * size / measure([step], device, seconds)["copy"]["copy"].median


def peak_memory(run: Callable[[], object], device: str) -> int:
    """Most bytes that ``run`` holds at once beyond what was there before, its results included.

    On CUDA by the allocator's own count. On the CPU by torch's profiler, which sees every tensor that is allocated and
    freed. The process's resident size would not do: the C library keeps freed memory below 32 MiB, so that a buffer
    that was used before does not show, and a fresh process for every case would take longer than the measurements. What
    libraries below torch allocate for themselves is not seen.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    held = peak = 0
    for change in changes:
        held += change["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def free_memory(device: str) -> int:
    """Bytes that can still be allocated."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    available = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    return int(available[0].split()[1]) * 1024


def rotating_sets(bytes_of_a_set: int, device: str) -> int:
    """Input sets that are twice as large as the caches together, and at least 3."""
    cache = 2**25  # a desktop's or a server core complex's last level
    if device == "cuda":
        cache = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 2**26)
    fewest, most = ROTATING_SETS
    return min(most, max(fewest, math.ceil(2 * cache / bytes_of_a_set)))
