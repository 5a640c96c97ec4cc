"""Which tile suits which kernel on the GPU at hand: ``python experiments/bench_operator_conv/tune.py``.

The launches take fixed tiles (``TILE`` and ``IMAGE_GRADIENT_TILE`` in the operators' ``launch.py``), so that no picture
size ever starts a search. This script makes the search once, for those constants: it times every kernel with every
candidate, in turns, and prints the times beside those of the constants in force. Candidates are timed, not checked:
run the tests marked ``gpu`` after a change.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import clock
import machine
import tables
import torch
from cases import Setting
from ways import get_way, make_tensors, single_gradient

from opir_lightning.files import write_atomically

HERE = Path(__file__).resolve().parent
CANDIDATES = ((8, 32, 4), (8, 32, 8), (16, 32, 8), (4, 64, 4), (4, 32, 4))  # rows, columns, warps
SETTINGS = (
    Setting(1, 3, 3, 2048, 2048, 3, (1, 2, 3, 4), taps="bfloat16"),
    Setting(1, 3, 1, 2048, 2048, 7, taps="bfloat16"),
)
FUSED = (Setting(1, 3, 3, 2048, 2048, 3, (1, 2, 3, 4), taps="bfloat16", F=16),)


class Job(NamedTuple):
    """Something to launch, and the constants that set its tile."""

    name: str
    constants: tuple[tuple[Any, str], ...]
    run: Callable[[Setting, dict[str, torch.Tensor]], object]


def jobs(fused: bool) -> list[Job]:
    """Every kernel of one of the operators."""
    from opir_lightning.ops.operator_conv import launch as operator
    from opir_lightning.ops.predict_and_apply import launch as predict
    from opir_lightning.ops.predict_and_apply.settings import Settings

    if not fused:
        return [
            Job("forward", ((operator, "TILE"),), lambda s, t: get_way("triton").value(s, t)),
            Job(
                "gradient of the taps",
                ((operator, "TILE"),),
                lambda s, t: single_gradient(s, t, "triton", of_image=False),
            ),
            Job(
                "gradient of the image",
                ((operator, "IMAGE_GRADIENT_TILE"),),
                lambda s, t: single_gradient(s, t, "triton", of_image=True),
            ),
        ]

    def gradient(position: int) -> Callable[[Setting, dict[str, torch.Tensor]], object]:
        needed = [n == position for n in range(5)]

        def run(s: Setting, t: dict[str, torch.Tensor]) -> object:
            inputs = [t[name] for name in ("upstream", "image", "features", "weight", "bias", "mix")]
            return predict.backward(*inputs, Settings(s.K, s.G, list(s.dilations), "reflect"), needed)

        return run

    tile = ((predict, "TILE"),)
    return [
        Job("fused forward", tile, lambda s, t: get_way("fused, triton").value(s, t)),
        *(
            Job(f"fused gradient of {name}", tile, gradient(n))
            for n, name in ((1, "features"), (2, "weight"), (4, "mix"))
        ),
    ]


def main() -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each kernel and tile")
    parser.add_argument("--out", type=Path, help="file of the results (tune-<device>.json beside this script)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    meta = machine.meta("cuda")
    rows: list[tuple[str, ...]] = []
    for s in (*SETTINGS, *FUSED):
        sets = [make_tensors(s, "cuda", seed) for seed in range(3)]
        for job in jobs(bool(s.F)):
            times = measure(job, s, sets, options.seconds)
            best = min(times, key=lambda name: times[name])
            in_force = "{} x {}, {} warps".format(*getattr(*job.constants[0]))
            rows.append((job.name, str(s), in_force, best, *(f"{times[name]:.3f}" for name in times)))
            print("\n".join(f"{job.name}, {name}: {time:.3f} ms" for name, time in times.items()), flush=True)
    names = ["{} x {}, {} warps".format(*tile) for tile in CANDIDATES]
    print(tables.markdown(("kernel", "setting", "in force", "fastest", *(f"{name}, ms" for name in names)), rows))
    path = options.out or HERE / f"tune-{machine.slug('cuda')}.json"
    write_atomically(path, (json.dumps({"meta": meta, "columns": names, "rows": rows}, indent=1) + "\n").encode())
    return 0


def measure(job: Job, s: Setting, sets: list[dict[str, torch.Tensor]], seconds: float) -> dict[str, float]:
    """Median milliseconds by candidate; the constants are as before afterwards. What cannot run takes forever."""
    before = [(module, name, getattr(module, name)) for module, name in job.constants]
    steps, times = [], {}
    try:
        for candidate in CANDIDATES:
            name = "{} x {}, {} warps".format(*candidate)

            def run(n: int, mark: clock.Mark, candidate: tuple[int, int, int] = candidate) -> object:
                for module, constant, value in before:
                    setattr(module, constant, type(value)(*candidate))
                with torch.inference_mode():
                    return job.run(s, sets[n % len(sets)])

            times[name] = float("inf")
            try:
                run(0, clock.no_mark)
            except Exception as error:  # too many registers, or too few pixels for its threads
                print(f"{job.name}, {name}: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
                continue
            steps.append(clock.Step(name, ("",), name, run))
        for name, timings in clock.measure(steps, "cuda", seconds).items():
            times[name] = timings[name].median * 1e3
    finally:
        for module, constant, value in before:
            setattr(module, constant, value)
    return times


if __name__ == "__main__":
    sys.exit(main())
