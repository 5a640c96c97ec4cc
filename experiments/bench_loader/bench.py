"""Samples per second of the training loader against decode-then-crop, and the memory of its processes.

python experiments/bench_loader/bench.py --clean DIR [--degraded DIR] [--seconds 8] [--workers 2]

The folders hold PNG files; with --degraded, of the same names. Without folders, PNG files are made of the embedded
photographs. Both loaders give the same kind of batch from the same files: random crops of 128x128, turned and flipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from albumentations.augmentations.geometric import functional as geometric
from albumentations.core.type_definitions import d4_group_elements
from memory import Memory, memory_of
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from opir_lightning.data import CleanFolder, PairedFolder
from opir_lightning.data.datamodule import RestorationData
from opir_lightning.data.images import list_images, to_tensor
from opir_lightning.data.samples import Sample, collate
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.degradations import Blur, Haze, Identity, LowLight, Noise, Rain
from opir_lightning.provenance import provenance

HERE = Path(__file__).resolve().parent
CROP, BATCH = 128, 16
FIVE = {"noise": Noise(), "rain": Rain(), "haze": Haze(), "blur": Blur(), "low_light": LowLight()}


class DecodeThenCrop(Dataset[Sample]):
    """The usual way: decode the whole files, cut out a crop, turn it, degrade it.

    Args:
        pairs: clean and degraded files; None where the degraded picture is made.
        degradations: one is drawn for each sample without a degraded file.
    """

    def __init__(self, pairs: list[tuple[Path, Path | None]], degradations: list[Any]) -> None:
        self.pairs, self.degradations = pairs, degradations

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> Sample:
        random = np.random.default_rng(np.random.SeedSequence([0, number]))
        clean, degraded = self.pairs[int(random.integers(len(self.pairs)))]
        decoded = [np.array(Image.open(path).convert("RGB")) for path in (clean, degraded) if path is not None]
        degradation = self.degradations[int(random.integers(len(self.degradations)))] if degraded is None else None
        margin = getattr(degradation, "margin", 0)
        side = CROP + 2 * margin
        height, width = decoded[0].shape[:2]
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        crops = [pixels[top : top + side, left : left + side] for pixels in decoded]
        turn = d4_group_elements[int(random.integers(len(d4_group_elements)))]
        image, *partner = (to_tensor(geometric.d4(pixels, turn)) for pixels in crops)
        if degradation is None:
            return Sample(partner[0], image, 0, False, clean.name)
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        damaged = degradation(image, generator=generator)
        middle = slice(margin, margin + CROP)
        return Sample(damaged[:, middle, middle], image[:, middle, middle], 0, False, clean.name)


class Numbers:
    """0, 1, 2, ... without an end."""

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1


def usual_loader(dataset: Dataset[Sample], workers: int) -> DataLoader[Sample]:
    return DataLoader(dataset, batch_size=BATCH, sampler=Numbers(), num_workers=workers, collate_fn=collate)  # type: ignore[arg-type]


def our_loader(sources: dict[str, Any], root: Path, packs: Path, workers: int, degrade_on: str) -> DataLoader[Any]:
    data = RestorationData(
        root=str(root),
        tasks=sorted({source.task for source in sources.values()}),
        train=sources,
        val={},
        crop=CROP,
        batch_size=BATCH,
        epoch_samples=1 << 30,
        workers=workers,
        jitter=0.0,
        degrade_on=degrade_on,  # type: ignore[arg-type]
        packs=str(packs),
    )
    data.prepare_sets()
    return data.train_dataloader()


def rate(loader: DataLoader[Any], seconds: float) -> tuple[float, list[Memory]]:
    """Samples per second after a warm-up, and the memory at four moments of the measured time."""
    batches = iter(loader)
    start = time.perf_counter()
    while time.perf_counter() - start < min(2.0, seconds / 3):
        next(batches)
    processes = [os.getpid(), *(worker.pid for worker in getattr(batches, "_workers", []))]
    count, memory = 0, []
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        count += 1
        if elapsed >= seconds * len(memory) / 4:
            memory.append(memory_of(processes))
    del batches
    return count * BATCH / elapsed, memory


def make_pngs(folder: Path) -> tuple[Path, Path]:
    """Pairs from the embedded photographs, 600x400 where they are that large."""
    for path in list_images(EMBEDDED / "train"):
        with Image.open(path) as image:
            clean = image.convert("RGB").resize((600, 400), Image.Resampling.LANCZOS)
        for name, picture in (("clean", clean), ("degraded", clean.point(lambda value: value // 3))):
            (folder / name).mkdir(exist_ok=True)
            picture.save(folder / name / f"{path.stem}.png")
    return folder / "clean", folder / "degraded"


def cases(
    root: Path, clean: str, degraded: str, packs: Path, workers: int
) -> dict[str, dict[str, Callable[[], DataLoader[Any]]]]:
    """By name of the case: how each loader is made."""
    files = list_images(root / clean)
    made: list[tuple[Path, Path | None]] = [(path, None) for path in files]
    pairs: list[tuple[Path, Path | None]] = [(path, root / degraded / path.name) for path in files]
    pair_source = {"pairs": PairedFolder("pairs", degraded, clean, augmentation="d4")}
    clean_source = {"none": CleanFolder("none", Identity(), [clean])}
    five = {task: CleanFolder(task, degradation, [clean]) for task, degradation in FIVE.items()}
    return {
        "pairs": {
            "usual": lambda: usual_loader(DecodeThenCrop(pairs, []), workers),
            "ours": lambda: our_loader(pair_source, root, packs, workers, "workers"),
            "ours, for the device": lambda: our_loader(pair_source, root, packs, workers, "device"),
        },
        "clean crops": {
            "usual": lambda: usual_loader(DecodeThenCrop(made, [Identity()]), workers),
            "ours": lambda: our_loader(clean_source, root, packs, workers, "workers"),
            "ours, for the device": lambda: our_loader(clean_source, root, packs, workers, "device"),
        },
        "five degradations": {
            "usual": lambda: usual_loader(DecodeThenCrop(made, list(FIVE.values())), workers),
            "ours": lambda: our_loader(five, root, packs, workers, "workers"),
            "ours, for the device": lambda: our_loader(five, root, packs, workers, "device"),
        },
    }


def measure(arguments: argparse.Namespace, root: Path, clean: str, degraded: str, packs: Path) -> dict[str, Any]:
    """All cases; the loaders of a case take turns, so that a busy moment meets both."""
    results: dict[str, Any] = {}
    for case, loaders in cases(root, clean, degraded, packs, arguments.workers).items():
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        memory: dict[str, list[Memory]] = {name: [] for name in loaders}
        for _ in range(arguments.rounds):
            for name, make in loaders.items():
                samples, seen = rate(make(), arguments.seconds)
                rates[name].append(samples)
                memory[name] = memory[name] or seen
        results[case] = {
            name: {
                "samples_per_second": round(median(values), 1),
                "rounds": [round(value, 1) for value in values],
                "times_usual": round(median(v / u for v, u in zip(values, rates["usual"], strict=True)), 2),
                "memory_mib": [m._asdict() for m in memory[name]],
            }
            for name, values in rates.items()
        }
        for name, result in results[case].items():
            last = memory[name][-1]
            print(
                f"{case:18} {name:22} {result['samples_per_second']:8.1f} samples/s  {result['times_usual']:6.2f}x  "
                f"own {memory[name][0].own:.0f} -> {last.own:.0f} MiB, mapped {last.mapped:.0f} MiB",
                flush=True,
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=Path, help="folder of PNG files")
    parser.add_argument("--degraded", type=Path, help="folder of their degraded partners, of the same names")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.clean is None:
            clean, degraded = make_pngs(Path(scratch))
        else:
            clean, degraded = arguments.clean.resolve(), (arguments.degraded or arguments.clean).resolve()
        root = Path(os.path.commonpath([clean, degraded]))
        root = root.parent if root in (clean, degraded) else root
        names = [str(folder.relative_to(root)) for folder in (clean, degraded)]
        start = time.perf_counter()
        packs = Path(scratch) / "packs"
        our_loader({"none": CleanFolder("none", Identity(), [names[0]])}, root, packs, 0, "workers")
        first = time.perf_counter() - start
        shutil.rmtree(packs)
        sizes = [Image.open(path).size for path in list_images(clean)]
        results = {
            "meta": dict(provenance())
            | {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
            | {"crop": CROP, "batch": BATCH, "workers": arguments.workers, "seconds": arguments.seconds},
            "files": {"count": len(sizes), "largest": max(sizes), "packed_in_seconds": round(first, 2)},
            "cases": measure(arguments, root, names[0], names[1], packs),
        }
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
