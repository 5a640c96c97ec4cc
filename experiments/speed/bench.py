"""Restoring and training speed of the variants beside any other network, in one run.

python experiments/speed/bench.py [--module FILE:CLASS[:JSON]] ... [--variants opir_base opir_small] [--restore 256 512]
    [--train 2x128] [--rounds 3] [--device cpu] [-o results.json]

Times a forward pass without gradients on one square picture, and a training step: forward, mean absolute error,
backward, AdamW. A variant runs blind and in both stages, what it needs to estimate the code included. A module is a
class of a Python file, made with the keyword arguments of a JSON table and called with a batch ``(B, 3, H, W)``; the
file's folder, and with ``--path`` others, are searched for what it imports. The networks take turns, and what counts is
the median of the ratios within a round, so that a busy moment meets all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opir_lightning.threads import limit_spinning

limit_spinning()  # as the commands do; read when torch is imported

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from opir_lightning import OPIR  # noqa: E402
from opir_lightning.config import config_dir  # noqa: E402
from opir_lightning.files import write_atomically  # noqa: E402
from opir_lightning.provenance import provenance  # noqa: E402

HERE = Path(__file__).resolve().parent
TASKS = ["none", "noise", "rain", "haze", "blur", "low_light"]


def variant(name: str) -> OPIR:
    """A variant with random weights, by its file in conf/model and those that it builds on."""
    settings: dict[str, Any] = {}
    file = Path(config_dir()) / "model" / f"{name}.yaml"
    node = yaml.safe_load(file.read_text())
    for base in node.get("defaults", []):
        if base != "_self_":
            settings |= yaml.safe_load(file.with_name(f"{base}.yaml").read_text())
    settings |= node
    settings = {key: value for key, value in settings.items() if key not in ("_target_", "defaults")}
    return OPIR(**{**settings, "tasks": TASKS, "code_crop": 64})


def foreign(text: str) -> tuple[str, nn.Module]:
    """Name and network of ``FILE:CLASS[:JSON]``."""
    file, _, rest = text.partition(":")
    name, _, arguments = rest.partition(":")
    path = Path(file).resolve()
    if not name or not path.is_file():
        sys.exit(f"error: '{text}' must be FILE:CLASS or FILE:CLASS:JSON, and FILE must exist.")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"timed_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return name, getattr(module, name)(**json.loads(arguments or "{}"))


def result_of(output: Any) -> Tensor:
    """The restored picture of whatever a network returns."""
    output = getattr(output, "refined", output)
    return output[0] if isinstance(output, list | tuple) else output


def restoring(net: nn.Module, side: int, device: str) -> Callable[[], object]:
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)

    def run() -> object:
        net.eval()
        with torch.inference_mode():
            return result_of(net(image))

    return run


def training(net: nn.Module, batch: int, side: int, device: str) -> Callable[[], object]:
    degraded, clean = torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def run() -> object:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        (result_of(net(degraded)) - clean).abs().mean().backward()
        return optimizer.step()

    return run


def seconds(run: Callable[[], object], device: str, least: float) -> float:
    """Of one call, the mean over as many calls as fit into ``least`` seconds, at least one."""
    count, start = 0, time.perf_counter()
    while True:
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        count += 1
        if (elapsed := time.perf_counter() - start) >= least:
            return elapsed / count


def compare(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, Any]:
    """Median seconds of each, and how many times as long as the first each takes."""
    for run in runs.values():
        run()  # the first call allocates
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device, 0.5))
    first = next(iter(times.values()))
    return {
        name: {
            "seconds": round(statistics.median(values), 4),
            "times_first": round(statistics.median(v / f for v, f in zip(values, first, strict=True)), 3),
            "rounds": [round(value, 4) for value in values],
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", default=[], metavar="FILE:CLASS[:JSON]")
    parser.add_argument("--path", action="append", default=[], help="folder to import from")
    parser.add_argument("--variants", nargs="*", default=["opir_base", "opir_small", "opir_tiny"])
    parser.add_argument("--restore", nargs="*", type=int, default=[256, 512], help="sides of the pictures, in pixels")
    parser.add_argument("--train", nargs="*", default=["2x128"], help="BATCHxSIDE of the crops")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    sys.path[:0] = [str(Path(folder).resolve()) for folder in arguments.path]
    torch.manual_seed(0)
    nets = {name: variant(name) for name in arguments.variants} | dict(foreign(text) for text in arguments.module)
    for net in nets.values():
        net.to(arguments.device)
    results: dict[str, Any] = {
        "meta": dict(provenance()) | {"load": os.getloadavg()[0], "rounds": arguments.rounds},
        "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()},
    }
    cases: dict[str, Callable[[nn.Module], Callable[[], object]]] = {
        f"restore {side}x{side}": lambda net, side=side: restoring(net, side, arguments.device)
        for side in arguments.restore
    }
    for text in arguments.train:
        batch, side = (int(number) for number in text.split("x"))
        cases[f"train {batch} x {side}x{side}"] = lambda net, b=batch, s=side: training(net, b, s, arguments.device)
    for case, make in cases.items():
        results[case] = compare({name: make(net) for name, net in nets.items()}, arguments.rounds, arguments.device)
        for name, row in results[case].items():
            print(f"{case:20} {name:16} {row['seconds']:9.4f} s  {row['times_first']:8.3f} x the first", flush=True)
        write_atomically(arguments.output, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
