"""Restoring and training speed of the variants beside any other network, in one run.

python experiments/speed/bench.py [--module [NAME=]WHERE:CLASS[:KEYWORDS[:SHAPES]]] ... [--path FOLDER] ...
    [--variants opir_base opir_small opir_tiny] [--against NAME] [--restore 256 512] [--train 2x128]
    [--precision float32|bfloat16] [--rounds 3] [--threads 2] [--device cpu] [-o results.json]

Times a forward pass without gradients on one square picture, and a training step: forward, mean absolute error,
backward, AdamW. A variant runs blind and in both stages, what it needs to estimate the code included.

A module is a class, or a function that makes one, of a Python file or of a module by its dotted name; KEYWORDS is a
table in JSON of what it is made with. It is called with a batch (B, 3, H, W), and where SHAPES, a list in JSON of the
shapes of one sample, names more inputs, with random numbers of those. What it returns may be a picture, or a tuple or
list of them: the first counts. A file's folder, and with --path others, are searched for what it imports.

The networks take turns, and what counts is the median of the ratios within a round, so that a busy moment meets all.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

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


class Timed(NamedTuple):
    """A network to be timed.

    Attributes:
        net: the network.
        shapes: of what it takes beside the picture, each without the batch.
        commit: of the checkout that its file belongs to, "" outside of one.
    """

    net: nn.Module
    shapes: Sequence[Sequence[int]] = ()
    commit: str = ""

    def __call__(self, image: Tensor, *others: Tensor) -> Tensor:
        """The restored picture."""
        output = self.net(image, *others)
        output = getattr(output, "refined", output)
        return output[0] if isinstance(output, list | tuple) else output

    def others(self, batch: int, device: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(batch, *shape, generator=generator).to(device) for shape in self.shapes]


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


def foreign(text: str) -> tuple[str, Timed]:
    """Name and network of ``[NAME=]WHERE:CLASS[:KEYWORDS[:SHAPES]]``."""
    where, _, rest = text.partition(":")
    name, named, where = where.rpartition("=")
    made_by, _, tables = rest.partition(":")
    keywords, shapes = _tables(tables, text)
    if not made_by:
        sys.exit(f"error: '{text}' must be [NAME=]WHERE:CLASS[:KEYWORDS[:SHAPES]].")
    module, commit = _imported(where)
    if not hasattr(module, made_by):
        sys.exit(f"error: '{where}' has no '{made_by}'.")
    return name if named else made_by, Timed(getattr(module, made_by)(**keywords), shapes, commit)


def _tables(text: str, whole: str) -> tuple[dict[str, Any], list[list[int]]]:
    """Keywords and shapes of ``[KEYWORDS[:SHAPES]]``; JSON has colons of its own."""
    try:
        keywords, end = json.JSONDecoder().raw_decode(text) if text else ({}, 0)
        shapes = json.loads(text[end + 1 :] or "[]")
    except json.JSONDecodeError as error:
        sys.exit(f"error: what follows the class in '{whole}' is no JSON: {error}.")
    if not isinstance(keywords, dict) or not all(isinstance(shape, list) for shape in shapes):
        sys.exit(f"error: '{whole}' needs a table of keywords, and a list of lists for the shapes.")
    return keywords, shapes


def _imported(where: str) -> tuple[ModuleType, str]:
    """A module of a file or a dotted name, and the commit of its checkout."""
    if where.endswith(".py"):
        path = Path(where).resolve()
        if not path.is_file():
            sys.exit(f"error: there is no file '{where}'.")
        sys.path.insert(0, str(path.parent))  # for good: a network may import when it is first called
        spec = importlib.util.spec_from_file_location(f"timed_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    return module, _commit(getattr(module, "__file__", None))


def _commit(file: str | None) -> str:
    if file is None:
        return ""
    words = ["git", "-C", str(Path(file).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def restoring(timed: Timed, side: int, device: str, precision: torch.dtype) -> Callable[[], object]:
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    others = timed.others(1, device)

    def run() -> object:
        timed.net.eval()
        with torch.inference_mode(), torch.autocast(device, precision, enabled=precision != torch.float32):
            return timed(image, *others)

    return run


def training(timed: Timed, batch: int, side: int, device: str, precision: torch.dtype) -> Callable[[], object]:
    degraded, clean = torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    others = timed.others(batch, device)
    optimizer = torch.optim.AdamW(timed.net.parameters(), lr=1e-4)

    def run() -> object:
        timed.net.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            loss = (timed(degraded, *others) - clean).abs().mean()
        loss.backward()
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


def compare(runs: dict[str, Callable[[], object]], rounds: int, device: str, against: str) -> dict[str, Any]:
    """Seconds of each, and how many times as fast as ``against`` it is."""
    for run in runs.values():
        seconds(run, device, 0)  # the first call allocates
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, device, 0.5))
    return {
        name: {
            "seconds": round(statistics.median(values), 4),
            "fastest": round(min(values), 4),
            "slowest": round(max(values), 4),
            "times_as_fast": round(statistics.median(a / v for a, v in zip(times[against], values, strict=True)), 2),
            "rounds": [round(value, 4) for value in values],
        }
        for name, values in times.items()
    }


def table(results: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = [
        f"| | network | median | fastest to slowest | times as fast as {results['against']} |",
        "|---|---|---|---|---|",
    ]
    for case, rows in results["cases"].items():
        for name, row in rows.items():
            millions = f"{results['networks'][name]['parameters'] / 1e6:.2f} M"
            spread = f"{row['fastest']:.3f} to {row['slowest']:.3f}"
            cells = [case, f"{name}, {millions}", f"{row['seconds']:.3f} s", spread, f"{row['times_as_fast']:g}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gather(arguments: argparse.Namespace) -> dict[str, Timed]:
    """Every network by its name."""
    networks = {name: Timed(variant(name)) for name in arguments.variants}
    for text in arguments.module:
        name, timed = foreign(text)
        if name in networks:
            sys.exit(f"error: two networks are called '{name}'; name one by --module NAME={text}.")
        networks[name] = timed
    if not networks:
        sys.exit("error: nothing to time; name --variants or a --module.")
    return networks


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--module", action="append", default=[], metavar="[NAME=]WHERE:CLASS[:KEYWORDS[:SHAPES]]")
    add("--path", action="append", default=[], metavar="FOLDER", help="folder to import from")
    add("--variants", nargs="*", default=["opir_base", "opir_small", "opir_tiny"])
    add("--against", metavar="NAME", help="the network that the others are held against (default: the first)")
    add("--restore", nargs="*", type=int, default=[256, 512], help="sides of the pictures, in pixels")
    add("--train", nargs="*", default=["2x128"], help="BATCHxSIDE of the crops")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, help="of torch; default: as many as it takes by itself")
    add("--device", default="cpu")
    add("-o", "--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sys.path[:0] = [str(Path(folder).resolve()) for folder in arguments.path]
    torch.manual_seed(0)
    networks = gather(arguments)
    against = arguments.against or next(iter(networks))
    if against not in networks:
        sys.exit(f"error: --against must be one of {', '.join(networks)}.")
    results: dict[str, Any] = {
        "meta": dict(provenance())
        | {"load": round(os.getloadavg()[0], 2), "rounds": arguments.rounds, "precision": arguments.precision},
        "networks": {
            name: {"parameters": sum(p.numel() for p in timed.net.parameters())}
            | ({"commit": timed.commit} if name not in arguments.variants else {})
            for name, timed in networks.items()
        },
        "against": against,
        "cases": {},
    }
    device, precision = arguments.device, getattr(torch, arguments.precision)
    cases: dict[str, Callable[[Timed], Callable[[], object]]] = {
        f"restore {side}x{side}": lambda timed, side=side: restoring(timed, side, device, precision)
        for side in arguments.restore
    }
    for text in arguments.train:
        batch, side = (int(number) for number in text.split("x"))
        cases[f"train {batch} x {side}x{side}"] = lambda timed, b=batch, s=side: training(
            timed, b, s, device, precision
        )
    for timed in networks.values():
        timed.net.to(device)
    for case, make in cases.items():
        runs = {name: make(timed) for name, timed in networks.items()}
        results["cases"][case] = compare(runs, arguments.rounds, device, against)
        write_atomically(arguments.output, (json.dumps(results, indent=1) + "\n").encode())
        print(table({**results, "cases": {case: results["cases"][case]}}), flush=True)


if __name__ == "__main__":
    main()
