"""What do skies gain, and do scores lose, by compressing what is brighter than white?

python experiments/five_task/highlights.py WEIGHTS --root DIR [-o FOLDER]

Every third pair of LOL-v1 train chooses the knee of `opir_lightning.highlights`; `eval15` is scored with the built-in
knee alone, afterwards. Four free photographs, whose shade is made dark and whose light is left, are drawn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import opir_lightning
from opir_lightning import Restorer
from opir_lightning.degradations.low_light import LowLight
from opir_lightning.highlights import KNEE, keep_highlights, measure_tone
from opir_lightning.metrics import score
from opir_lightning.provenance import provenance
from opir_lightning.types import Restoration

HERE = Path(__file__).resolve().parent
DEMO = Path(opir_lightning.__file__).parent / "data" / "demo"
KNEES = (0.5, 0.6, 0.7, 0.8)
PHOTOGRAPHS = ("train/sunset.jpg", "train/picosdeeuropa.jpg", "heldout/bridge.jpg", "heldout/aitzgorri.jpg")
WIDTH = 480  # pixels, of a photograph in the figure


def read(path: Path) -> Tensor:
    """``(1, 3, H, W)`` in [0, 1]."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise SystemExit(f"error: '{path}' cannot be read")
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def psnr(restored: Tensor, clean: Tensor) -> float:
    return float(score(restored.clamp(0, 1), clean, profile="published")["psnr"])


def kept(restorer: Restorer, image: Tensor, restored: Restoration, knee: float, task: str | None = None) -> Tensor:
    tone = measure_tone(restorer.model, image, restorer._code(image, task), knee=knee)
    if tone is None:
        return restored.refined
    return keep_highlights(image, restored.coarse, restored.refined, tone, knee=knee)


def measure(restorer: Restorer, folder: Path, knees: tuple[float, ...], every: int = 1) -> dict[str, object]:
    """PSNR of pairs, cut off at white and compressed from each knee."""
    rows = {}
    for path in tqdm(sorted((folder / "low").iterdir())[::every], desc=folder.name):
        image, clean = read(path), read(folder / "high" / path.name)
        restored = restorer(image)
        row = {"clip": psnr(restored.refined, clean)}
        row |= {f"keep from {knee}": psnr(kept(restorer, image, restored, knee), clean) for knee in knees}
        rows[path.name] = row
    mean = {name: float(np.mean([row[name] for row in rows.values()])) for name in next(iter(rows.values()))}
    return {"mean": mean, "pictures": rows}


def draw(restorer: Restorer) -> np.ndarray:
    """Rows of a photograph against the light: as it is, cut off, compressed."""
    damage = LowLight(
        exposure=(1.0, 0.05),
        curve=(1.0, 1.0),
        cast=(1.0, 1.0),
        lamp_share=0.0,
        backlit_share=1.0,
        lit_stops=(0.0, 0.0),
        lit_area=(0.4, 0.4),
    )
    rows = []
    for name in PHOTOGRAPHS:
        clean = read(DEMO / name)
        clean = torch.nn.functional.interpolate(
            clean, (round(WIDTH * clean.shape[2] / clean.shape[3]), WIDTH), mode="area"
        )
        draws = [damage.draw(*clean.shape[2:], generator=torch.Generator().manual_seed(0), severity=0.7)]
        image = damage.apply(clean, draws)
        restored = restorer(image, task="low_light")
        parts = (image, restored.refined, kept(restorer, image, restored, KNEE, "low_light"))
        rows.append(torch.cat(parts, dim=3)[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).byte().numpy())
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--root", type=Path, required=True, help="folder with LOL-v1/train and LOL-v1/eval15")
    parser.add_argument("-o", "--output", type=Path, default=HERE)
    arguments = parser.parse_args()
    restorer = Restorer.from_pretrained(arguments.weights)
    sets = {
        "LOL-v1 train, every third": measure(restorer, arguments.root / "LOL-v1/train", KNEES, every=3),
        "LOL-v1 eval15": measure(restorer, arguments.root / "LOL-v1/eval15", (KNEE,)),
    }
    for name, rows in sets.items():
        print(name, rows["mean"])
    record = {"meta": provenance(), "weights": arguments.weights, "sets": sets}
    (arguments.output / f"highlights_{arguments.weights}.json").write_text(json.dumps(record, indent=1) + "\n")
    figure = cv2.cvtColor(draw(restorer), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(arguments.output / f"highlights_{arguments.weights}.jpg"), figure, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
