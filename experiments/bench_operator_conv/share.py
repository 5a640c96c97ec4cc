"""The operator's share of a restoration and of a training step: ``python experiments/bench_operator_conv/share.py``.

Counts what ``predict_and_apply`` takes by torch's profiler, both stages, in ``Restorer`` on a picture and in forward,
backward and optimizer step of a batch. Fused, that is the projection of the features too; in separate steps the part
of ``operator_conv`` alone is told as well. Needs the installed package: it reads the variants from ``conf/model``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from opir_lightning.threads import limit_spinning

limit_spinning()  # as the commands do; read when torch is imported

import machine  # noqa: E402
import tables  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

from opir_lightning import OPIR, Restorer  # noqa: E402
from opir_lightning.config import config_dir  # noqa: E402
from opir_lightning.files import write_atomically  # noqa: E402
from opir_lightning.models import opir  # noqa: E402
from opir_lightning.ops.predict_and_apply import unfused  # noqa: E402

HERE = Path(__file__).resolve().parent
TASKS = ["none", "noise", "rain", "haze", "blur", "low_light"]
WHOLE, CONVOLUTION = "predict and apply", "operator convolution"
# Names that the profiler gives to what belongs to each, backward passes included.
BACKWARD = {
    WHOLE: ("opir_lightning::predict_and_apply_backward", "opir_lightning::operator_conv_backward"),
    CONVOLUTION: ("opir_lightning::operator_conv_backward",),
}


def make(variant: str, *, fused: bool) -> OPIR:
    """A variant with random weights."""
    settings: dict[str, Any] = {}
    names = ["opir_tiny"] if variant == "opir_tiny" else ["opir_tiny", variant]
    for name in names:
        settings |= yaml.safe_load((Path(config_dir()) / "model" / f"{name}.yaml").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("_target_", "defaults")}
    torch.manual_seed(0)
    return OPIR(**{**settings, "tasks": TASKS, "code_crop": 64, "fused": fused})


def shares(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """The operator's shares of the time of a run, by the profiler."""
    run()
    with ExitStack() as stack:
        for module, name, label in (
            (opir, "predict_and_apply", WHOLE),
            (unfused, "operator_conv", CONVOLUTION),
        ):
            stack.enter_context(patch.object(module, name, _recorded(getattr(module, name), label)))
        prof = stack.enter_context(profile(activities=[ProfilerActivity.CPU]))
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        total = time.perf_counter() - start
    events = {event.key: event.cpu_time_total * 1e-6 for event in prof.key_averages()}
    return {label: sum(events.get(name, 0.0) for name in (label, *names)) / total for label, names in BACKWARD.items()}


def medians(runs: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Milliseconds of each run without the profiler, taken in turns: a machine that slows down does so for all."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(turns):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) * 1e3 for taken in times]


def _recorded(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    def recorded(*args: Any, **options: Any) -> Any:
        with record_function(label):
            return function(*args, **options)

    return recorded


def restoring(net: OPIR, side: int) -> Callable[[], object]:
    """A picture of ``side`` x ``side`` pixels through `Restorer`."""
    restorer = Restorer(net.eval(), device="cpu")
    pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy()
    return lambda: restorer.restore_pixels(pixels)


def training(net: OPIR, batch: int, side: int) -> Callable[[], object]:
    """One step on ``batch`` crops of ``side`` x ``side`` pixels."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    degraded, clean = torch.rand(2, batch, 3, side, side)

    def step() -> None:
        restored = net(degraded)
        loss = sum((part - clean).abs().mean() for part in (restored.coarse, restored.refined))
        optimizer.zero_grad()
        (loss + restored.uncertainty.mean() + restored.task_logits.square().mean()).backward()
        optimizer.step()

    return step


WORK: dict[str, Callable[[OPIR], Callable[[], object]]] = {
    "restore 512x512": lambda net: restoring(net, 512),
    "train 8 x 64x64": lambda net: training(net, 8, 64),
    "train 2 x 128x128": lambda net: training(net, 2, 128),
}


def main() -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE / "share-cpu.json")
    options = parser.parse_args()
    rows = []
    for variant in ("opir_tiny", "opir_small", "opir_base"):
        for name, prepare in WORK.items():
            runs = [prepare(make(variant, fused=fused)) for fused in (True, False)]
            found = [shares(run, 5) for run in runs]
            for fused, of_run, took in zip((True, False), found, medians(runs, 9), strict=True):
                row = {"variant": variant, "fused": fused, "work": name, "ms": round(took, 1)}
                rows.append(row | {label: round(share, 4) for label, share in of_run.items()})
                print(rows[-1], flush=True)
    header = ("variant", "operator", "work", "time", WHOLE, f"of which {CONVOLUTION}")
    cells = [
        (
            row["variant"],
            "fused" if row["fused"] else "separate steps",
            row["work"],
            f"{row['ms']:.0f} ms",
            f"{row[WHOLE]:.1%}",
            "" if row["fused"] else f"{row[CONVOLUTION]:.1%}",
        )
        for row in rows
    ]
    print(tables.markdown(header, cells))
    write_atomically(options.out, (json.dumps({"meta": machine.meta("cpu"), "rows": rows}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
