"""What an exported model costs beside PyTorch: difference, time and peak memory, on real pictures.

python experiments/speed/export_table.py [--weights opir_tiny opir_small] [--sizes 256x256 481x321 1024x768]
    [--pictures FOLDER|FILE ...] [--count 4] [--rounds 9] [--threads 2] [-o export.json]

Each packaged (or otherwise named) model is exported once, with open sizes. For each size (width x height, or "whole"
for pictures as they are) PyTorch and ONNX Runtime are then started in a process of their own and restore the same
pictures. All that comes out is compared: pictures by their largest absolute difference, logits by their share of the
largest. The first picture is timed: both take turns, one run each. Peak memory is what the process took at most, above
what it had taken after its imports: weights, session and everything in between.
Without ``--pictures`` the photographs that come with the package are taken. The exit status is 1 where a result differs
by more than the export allows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opir_lightning.export import INPUT, OUTPUTS, TOLERANCE, deviation

HERE = Path(__file__).resolve().parent
ENGINES = ("pytorch", "onnxruntime")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


# ------------------------------------------------------------------ in the process of an engine: torch is imported here


def pytorch(weights: str, threads: int) -> tuple[Callable[[], Run], str]:
    """What loads the model and returns how to run it, and the version; the imports are done."""
    from opir_lightning.threads import limit_spinning

    limit_spinning()
    import torch

    from opir_lightning.checkpoints import load_model

    torch.set_num_threads(threads)

    def load() -> Run:
        model = load_model(weights)[0].eval()

        def run(image: np.ndarray) -> Sequence[np.ndarray]:
            with torch.inference_mode():
                restored = model(torch.from_numpy(image))
            return [getattr(restored, name).numpy() for name in OUTPUTS]

        return run

    return load, torch.__version__


def onnxruntime(file: str, threads: int) -> tuple[Callable[[], Run], str]:
    """As `pytorch`."""
    import onnxruntime as runtime

    def load() -> Run:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda image: session.run(OUTPUTS, {INPUT: image})

    return load, runtime.__version__


def serve(engine: str, model: str, threads: int) -> None:
    """Answer lines with lines: ``restore IN OUT`` runs and stores the outputs, ``time IN`` gives seconds."""
    load, version = (pytorch if engine == "pytorch" else onnxruntime)(model, threads)
    imported = _peak()
    run = load()
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        command, *paths = json.loads(line)
        answer: dict[str, float] = {}
        if command == "restore":
            np.savez(paths[1], **dict(zip(OUTPUTS, run(np.load(paths[0])), strict=True)))
        elif command == "time":
            image, start = np.load(paths[0]), time.perf_counter()
            run(image)
            answer["seconds"] = time.perf_counter() - start
        answer["memory_mib"] = (_peak() - imported) / 1024
        print(json.dumps(answer), flush=True)


def _peak() -> int:
    """Most memory that this process has had so far, in KiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ------------------------------------------------------------------------------------------------ in the first process
# It must stay small: on Linux a process begins with the peak of the one that started it.


class Engine:
    """A process that restores with one of `ENGINES`."""

    def __init__(self, engine: str, model: str, threads: int) -> None:
        words = [sys.executable, __file__, "--serve", engine, model, str(threads)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version: str = self._answer()["version"]

    def ask(self, *words: str) -> dict[str, float]:
        """Send a command, wait for what it gives."""
        assert self.process.stdin is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: {self.process.args} ended with status {self.process.wait()}.")
        return json.loads(line)


def embedded() -> list[Path]:
    """The photographs that come with the package."""
    from opir_lightning import export

    return sorted((Path(export.__file__).parent / "data" / "demo").glob("*/*.jpg"))


def chosen(sources: Sequence[Path], count: int) -> list[Path]:
    """Up to ``count`` pictures of each folder, evenly spaced, and every file that is named."""
    paths: list[Path] = []
    for source in sources:
        found = [source]
        if source.is_dir():
            found = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
            found = [found[i * len(found) // count] for i in range(count)] if len(found) > count else found
        paths += found
    return paths


def picture(path: Path, size: str) -> np.ndarray:
    """``(1, 3, H, W)`` float32 in [0, 1] on the levels of 8 bits: the middle of the picture.

    One that is too small is enlarged first, as little as it takes.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if size != "whole":
        width, height = (int(number) for number in size.split("x"))
        scale = max(width / image.width, height / image.height)
        if scale > 1:
            enlarged = max(width, round(image.width * scale)), max(height, round(image.height * scale))
            image = image.resize(enlarged, Image.Resampling.BICUBIC)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255)


def measure(weights: str, file: str, size: str, paths: Sequence[Path], rounds: int, threads: int) -> dict[str, Any]:
    """One row: both engines on the same pictures."""
    engines = {"pytorch": Engine("pytorch", weights, threads), "onnxruntime": Engine("onnxruntime", file, threads)}
    answers: dict[str, dict[str, float]] = {}
    times: dict[str, list[float]] = {name: [] for name in engines}
    differences = dict.fromkeys(OUTPUTS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        first = os.path.join(folder, "first.npy")  # noqa: PTH118
        for number, path in enumerate(paths):
            given = first if number == 0 else os.path.join(folder, "image.npy")  # noqa: PTH118
            np.save(given, picture(path, size))
            results = []
            for name, engine in engines.items():
                stored = f"{folder}/{name}.npz"
                answers[name] = engine.ask("restore", given, stored)
                results.append(np.load(stored))
            for output in OUTPUTS:
                difference = deviation(output, results[1][output], results[0][output])
                # So written, a NaN is kept.
                differences[output] = differences[output] if difference <= differences[output] else difference
        for _ in range(rounds):
            for name, engine in engines.items():
                answers[name] = engine.ask("time", first)
                times[name].append(answers[name]["seconds"])
        pixels = int(np.prod(np.load(first).shape[2:]))
    row: dict[str, Any] = {"weights": weights, "size": size, "pictures": len(paths), "timed_pixels": pixels}
    row["largest_difference"] = differences
    for name, engine in engines.items():
        engine.close()
        row[name] = {
            "version": engine.version,
            "seconds": round(statistics.median(times[name]), 4),
            "fastest": round(min(times[name]), 4),
            "slowest": round(max(times[name]), 4),
            "memory_mib": round(answers[name]["memory_mib"]),
        }
    ratios = [t / o for t, o in zip(times["pytorch"], times["onnxruntime"], strict=True)]
    row["pytorch_over_onnxruntime"] = round(statistics.median(ratios), 2)
    return row


def fits(row: dict[str, Any]) -> bool:
    """Whether nothing differs by more than the export allows; a NaN does."""
    return all(value <= TOLERANCE for value in row["largest_difference"].values())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| weights | size | pictures | differs by at most | PyTorch | ONNX Runtime | memory: PyTorch | ONNX Runtime |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times, memory = [], []
        for name in ENGINES:
            of = row[name]
            times.append(f"{of['seconds']:.3f} s ({of['fastest']:.3f} to {of['slowest']:.3f})")
            memory.append(f"{of['memory_mib']} MiB")
        largest = max(row["largest_difference"].values())
        cells = [row["weights"], row["size"], str(row["pictures"]), f"{largest:.1e}", *times, *memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", nargs="+", default=["opir_tiny", "opir_small"], help="names of packaged weights, or files")
    add("--sizes", nargs="+", default=["256x256", "481x321", "1024x768"], help='WIDTHxHEIGHT, or "whole"')
    add("--pictures", nargs="+", type=Path, metavar="FOLDER|FILE", help="instead of the embedded photographs")
    add("--count", type=int, default=4, help="pictures of each folder")
    add("--rounds", type=int, default=9)
    add("--threads", type=int, default=2)
    add("-o", "--output", type=Path, default=HERE / "export.json")
    add("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        engine, model, threads = arguments.serve
        serve(engine, model, int(threads))
        return 0
    paths = chosen(arguments.pictures, arguments.count) if arguments.pictures else embedded()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for weights in arguments.weights:
            file = str(Path(folder) / "exported.onnx")
            words = [sys.executable, "-m", "opir_lightning.export", "--weights", weights, "-o", file]
            subprocess.run(words, check=True)
            for size in arguments.sizes:
                rows.append(measure(weights, file, size, paths, arguments.rounds, arguments.threads))
                print(table(rows).splitlines()[-1], flush=True)
    from opir_lightning.files import write_atomically
    from opir_lightning.provenance import provenance  # brings torch along, which the engines would have begun with

    meta = dict(provenance()) | {"device": f"CPU, {arguments.threads} threads", "rounds": arguments.rounds}
    meta |= {"load": round(os.getloadavg()[0], 2), "tolerance": TOLERANCE}
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    results = {"meta": meta, "pictures": names, "rows": rows}
    write_atomically(arguments.output, (json.dumps(results, indent=1) + "\n").encode())
    print("\n" + table(rows))
    if not all(fits(row) for row in rows):
        print(f"error: a result differs by more than {TOLERANCE:.0e}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
