"""One run: parity, then time and memory of every case, written down as it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import clock
import parity
import torch
from cases import (
    BACKWARD,
    BOTH,
    FORWARD,
    IMAGE_GRADIENT,
    TAPS_GRADIENT,
    Series,
    Setting,
    fewest_bytes,
    needed_bytes,
    tensor_bytes,
)
from ways import Tensors, Way, get_way, make_tensors, single_gradient, why_not

from opir_lightning.files import write_atomically

SHARE_OF_FREE_MEMORY = 0.8


class Run:
    """Measures series and keeps the results in ``results``: meta, cases.

    A case is a mapping: series, setting, way, quantity, status, and

    - status "timed": median_ms, quartiles_ms, repeats, bytes (the fewest), copy_ratio (time over the time of these
      bytes at the copy bandwidth), peak_bytes (held at once beyond the inputs, results included; not for backward
      alone), host_ms (CUDA: the host's time to queue it);
    - status "skipped" (does not fit, is not there, no time left), "refused" (fails parity), "failed": reason.

    Args:
        device: "cpu" or "cuda".
        seconds: about how long each case is measured.
        minutes: after these, what is left is skipped.
        path: of the results.
        meta: where the results come from, with ``copy_bytes_per_second``.
    """

    def __init__(self, device: str, seconds: float, minutes: float, path: Path, meta: dict[str, Any]) -> None:
        self.device, self.seconds, self.path = device, seconds, path
        self.minutes, self.end = minutes, time.monotonic() + minutes * 60
        self.results: dict[str, Any] = {"meta": meta, "cases": []}
        self.parity: dict[tuple[str, Setting], str | None] = {}

    def series(self, series: Iterable[Series]) -> None:
        """Measure; the file is there after every series, and after an interruption."""
        for one in series:
            print(f"\n{one.name}: {one.title}", flush=True)
            try:
                for setting in one.settings:
                    self._setting(one, setting)
            finally:
                self.write()

    def write(self) -> None:
        """Write the results so far."""
        write_atomically(self.path, (json.dumps(self.results, indent=1, allow_nan=False) + "\n").encode())

    @property
    def wrong(self) -> list[dict[str, Any]]:
        """What failed parity, or at all."""
        return [case for case in self.results["cases"] if case["status"] in ("refused", "failed")]

    def _setting(self, series: Series, s: Setting) -> None:
        print(f"  {s}", flush=True)
        ways = []
        for way in map(get_way, series.ways):
            status, reason = self._may_run(way, s)
            if status:
                self._not_timed(series, s, way.name, self._quantities(way), status, reason)
            else:
                ways.append(way)
        size = sum(tensor_bytes(s).values())
        count = clock.rotating_sets(size, self.device)
        if count * size > SHARE_OF_FREE_MEMORY * clock.free_memory(self.device):
            reason = f"{count} input sets of {size / 2**30:.1f} GiB do not fit"
            for way in ways:
                self._not_timed(series, s, way.name, self._quantities(way), "skipped", reason)
            return
        sets = [make_tensors(s, self.device, seed) for seed in range(count)] if ways else []
        for steps in self._groups(ways, s, sets):
            self._steps(series, s, steps)

    def _may_run(self, way: Way, s: Setting) -> tuple[str, str]:
        """Status and reason where a way is not timed at a setting, else empty."""
        if time.monotonic() > self.end:
            return "skipped", f"the {self.minutes:g} minutes were over"
        reason = why_not(way.name, self.device)
        if reason is not None:
            return "skipped", reason
        key = way.name, parity.same_kernels(s)
        if key not in self.parity:
            try:
                self.parity[key] = parity.failure(way, s, self.device)
            except Exception as error:  # a kernel that does not compile must not end the run
                self.parity[key] = f"{type(error).__name__}: {_short(error)}"
        wrong = self.parity[key]
        return ("refused", wrong) if wrong else ("", "")

    def _quantities(self, way: Way) -> list[str]:
        single = [TAPS_GRADIENT, IMAGE_GRADIENT] if way.backend and self.device == "cuda" else []
        return [FORWARD, BOTH, BACKWARD, *single]

    def _groups(self, ways: list[Way], s: Setting, sets: list[dict[str, torch.Tensor]]) -> list[list[clock.Step]]:
        """Steps that are measured in turns."""
        groups = [[_forward(way, s, sets) for way in ways], [_training(way, s, sets) for way in ways]]
        if self.device == "cuda":
            single = [way for way in ways if way.backend]
            groups += [[_single(way, s, sets, of_image) for way in single] for of_image in (False, True)]
        return [group for group in groups if group]

    def _steps(self, series: Series, s: Setting, steps: list[clock.Step]) -> None:
        """Time what fits and works, and write down the rest."""
        timed: list[clock.Step] = []
        peaks: dict[str, int] = {}
        for step in steps:
            try:
                status, reason = self._try(s, step, peaks)
            except torch.OutOfMemoryError as error:
                status, reason = "skipped", f"out of memory: {_short(error)}"
            except Exception as error:  # a baseline that cannot do a size must not end the run
                status, reason = "failed", f"{type(error).__name__}: {_short(error)}"
            if status:
                self._not_timed(series, s, step.name, _names(step), status, reason)
            else:
                timed.append(step)
        if not timed:
            return
        try:
            timings = clock.measure(timed, self.device, self.seconds)
        except Exception as error:  # as above; what was to be compared is lost together
            status = "skipped" if isinstance(error, torch.OutOfMemoryError) else "failed"
            for step in timed:
                self._not_timed(series, s, step.name, _names(step), status, f"{type(error).__name__}: {_short(error)}")
            return
        for step in timed:
            for quantity, timing in timings[step.name].items():
                peak = peaks[step.name] if quantity == step.whole else None
                self._timed(series, s, step.name, quantity, timing, peak)

    def _try(self, s: Setting, step: clock.Step, peaks: dict[str, int]) -> tuple[str, str]:
        """Run once for the memory it takes; status and reason where that is not possible."""
        if time.monotonic() > self.end:
            return "skipped", f"the {self.minutes:g} minutes were over"
        needed, free = needed_bytes(s, step.name, step.whole == BOTH), clock.free_memory(self.device)
        if needed > SHARE_OF_FREE_MEMORY * free:
            return "skipped", f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        if self.device == "cuda":
            step.run(0, clock.no_mark)  # what libraries keep from their first use on is not the step's
        peaks[step.name] = clock.peak_memory(lambda: step.run(0, clock.no_mark), self.device)
        return "", ""

    def _timed(
        self, series: Series, s: Setting, way: str, quantity: str, timing: clock.Timing, peak: int | None
    ) -> None:
        size = fewest_bytes(s, quantity)
        ratio = timing.median * self.results["meta"]["copy_bytes_per_second"] / size
        case = _case(series, s, way, quantity) | {
            "status": "timed",
            "median_ms": _digits(timing.median * 1e3),
            "quartiles_ms": [_digits(timing.low * 1e3), _digits(timing.high * 1e3)],
            "repeats": timing.repeats,
            "bytes": size,
            "copy_ratio": _digits(ratio),
        }
        if peak is not None:
            case["peak_bytes"] = peak
        if timing.host is not None:
            case["host_ms"] = _digits(timing.host * 1e3)
        self.results["cases"].append(case)
        memory = "" if peak is None else f", {peak / 2**20:.0f} MiB"
        print(f"    {way}, {quantity}: {timing.median * 1e3:.3g} ms, {ratio:.2f} x copy{memory}", flush=True)

    def _not_timed(
        self, series: Series, s: Setting, way: str, quantities: Iterable[str], status: str, reason: str
    ) -> None:
        for quantity in quantities:
            self.results["cases"].append(_case(series, s, way, quantity) | {"status": status, "reason": reason})
        print(f"    {way}: {status}: {reason}", flush=True)


def _names(step: clock.Step) -> list[str]:
    return [step.whole, *filter(None, step.parts)]


def _case(series: Series, s: Setting, way: str, quantity: str) -> dict[str, Any]:
    setting = s._asdict() | {"dilations": list(s.dilations)}
    return {"series": series.name, "setting": setting, "way": way, "quantity": quantity}


def _forward(way: Way, s: Setting, sets: list[dict[str, torch.Tensor]]) -> clock.Step:
    """The result alone, as in restoring."""

    def run(n: int, mark: clock.Mark) -> object:
        with torch.inference_mode():
            return way.value(s, sets[n % len(sets)])

    return clock.Step(way.name, ("",), FORWARD, run)


def _training(way: Way, s: Setting, sets: list[dict[str, torch.Tensor]]) -> clock.Step:
    """The result, recorded for autograd, and the gradients of all that the way differentiates."""
    wanted = way.differentiated
    leaves: list[Tensors] = [
        {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in tensors.items()} for tensors in sets
    ]

    def run(n: int, mark: clock.Mark) -> object:
        tensors = leaves[n % len(leaves)]
        result = way.value(s, tensors)
        mark()
        return result, torch.autograd.grad(result, [tensors[name] for name in wanted], tensors["upstream"])

    return clock.Step(way.name, ("", BACKWARD), BOTH, run)


def _single(way: Way, s: Setting, sets: list[dict[str, torch.Tensor]], of_image: bool) -> clock.Step:
    def run(n: int, mark: clock.Mark) -> object:
        with torch.inference_mode():
            return single_gradient(s, sets[n % len(sets)], way.backend, of_image=of_image)

    return clock.Step(way.name, ("",), IMAGE_GRADIENT if of_image else TAPS_GRADIENT, run)


def _short(error: Exception) -> str:
    """The first line of a message, which may hold a whole compiler log."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _digits(value: float) -> float:
    """Five digits: more would pretend."""
    return float(f"{value:.5g}")
