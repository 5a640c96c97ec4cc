"""What do hazy pictures gain by letting what is taken off them vary slowly?

python experiments/five_task/smooth_haze.py WEIGHTS --root DIR [-o FOLDER]

Pairs that are trained on and damaged validation photographs choose the window of `opir_lightning.smooth_haze`; test
sets are scored with the built-in one alone. Free photographs are drawn in artificial haze.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from highlights import psnr, read
from torch import Tensor
from tqdm import tqdm

import opir_lightning
from opir_lightning import Restorer
from opir_lightning.degradations import Haze
from opir_lightning.provenance import provenance
from opir_lightning.smooth_haze import REACH, SmoothHaze

HERE = Path(__file__).resolve().parent
DEMO = Path(opir_lightning.__file__).parent / "data" / "demo"
REACHES = (1 / 64, 1 / 32, REACH, 1 / 8, 1 / 4)
CHOOSING, TEST = ("ITS", "OTS-crops", "REVIDE"), ("SOTS-outdoor", "SOTS-indoor", "O-HAZE")
SEVERITIES = (0.3, 0.6, 1.0)
LONGEST = 1024  # pixels: larger ones are made smaller
DRAWN = {"heldout/bridge.jpg": 0.5, "train/picosdeeuropa.jpg": 0.7}  # with their severity
WIDTH = 480  # pixels, of a photograph in the figure


def pairs(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Hazy and clear, ``(1, 3, H, W)`` in [0, 1]; a clear one may belong to several."""
    for path in sorted((folder / "hazy").iterdir()):
        clear = [other for other in (folder / "gt").iterdir() if other.stem in (path.stem, path.stem.split("_")[0])]
        clear = clear or sorted((folder / "gt").glob(path.stem.split("_")[0] + "_*"))
        both = [read(path), read(clear[0])]
        if max(both[0].shape) > LONGEST:
            scale = LONGEST / max(both[0].shape)
            both = [torch.nn.functional.interpolate(each, scale_factor=scale, mode="area") for each in both]
        yield both[0], both[1]


def damaged(folder: Path, severity: float, damage: Haze) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures of a folder in artificial haze, and as they are."""
    for number, path in enumerate(sorted(folder.iterdir())):
        clean = read(path)
        drawn = damage.draw(*clean.shape[2:], generator=torch.Generator().manual_seed(number), severity=severity)
        yield damage.apply(clean, [drawn]), clean


def smooth(restorer: Restorer, hazy: Tensor, refined: Tensor, reach: float) -> Tensor:
    """The result of `restore`, with a window of this size."""
    height, width = hazy.shape[2:]
    air = SmoothHaze.of(restorer.tasks, restorer._code(hazy, None), height, width, reach=reach)
    if air is None:
        return refined
    everything = slice(0, height)
    air.watch(everything, hazy[0], refined[0])
    return air.smooth(everything, hazy[0], refined[0])[None]


def measure(
    restorer: Restorer, name: str, pictures: Iterator[tuple[Tensor, Tensor]], reaches: tuple[float, ...]
) -> dict[str, float]:
    """Mean PSNR of the input, of the network's result, and of that with windows of these sizes."""
    rows = []
    for hazy, clear in tqdm(pictures, desc=name):
        refined = restorer(hazy).refined
        row = {"input": psnr(hazy, clear), "raw": psnr(refined, clear)}
        rows.append(row | {f"{reach:.4f}": psnr(smooth(restorer, hazy, refined, reach), clear) for reach in reaches})
    return {"pictures": len(rows)} | {key: round(float(np.mean([row[key] for row in rows])), 2) for key in rows[0]}


def draw(restorer: Restorer) -> np.ndarray:
    """Rows of a photograph in haze: as it is, as the network has it, smooth."""
    rows, damage = [], Haze(glow_share=0.0)
    for name, severity in DRAWN.items():
        clean = read(DEMO / name)
        size = round(WIDTH * clean.shape[2] / clean.shape[3]), WIDTH
        clean = torch.nn.functional.interpolate(clean, size, mode="area")
        drawn = damage.draw(*size, generator=torch.Generator().manual_seed(1), severity=severity)
        hazy = damage.apply(clean, [drawn])
        refined = restorer(hazy).refined
        parts = (hazy, refined, smooth(restorer, hazy, refined, REACH))
        rows.append(torch.cat(parts, dim=3)[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).byte().numpy())
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--root", type=Path, required=True, help="folder with BSD-val-rest, ITS, SOTS-indoor, ...")
    parser.add_argument("-o", "--output", type=Path, default=HERE)
    arguments = parser.parse_args()
    restorer = Restorer.from_pretrained(arguments.weights)
    name = Path(arguments.weights).stem
    sets = {each: measure(restorer, each, pairs(arguments.root / each), REACHES) for each in CHOOSING}
    for severity in SEVERITIES:
        photographs = damaged(arguments.root / "BSD-val-rest", severity, Haze())
        sets[f"BSD-val-rest {severity}"] = measure(restorer, f"BSD-val-rest {severity}", photographs, REACHES)
    sets |= {each: measure(restorer, each, pairs(arguments.root / each), (REACH,)) for each in TEST}
    for each, row in sets.items():
        print(each, row)
    record = {"meta": provenance(), "weights": arguments.weights, "sets": sets}
    (arguments.output / f"smooth_haze_{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    figure = cv2.cvtColor(draw(restorer), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(arguments.output / f"smooth_haze_{name}.jpg"), figure, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
