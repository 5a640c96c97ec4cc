"""Each synthetic degradation from faint to heavy, on two embedded photographs.

python experiments/degradations/figure.py              (writes severities.jpg beside this file, some seconds)
python experiments/degradations/figure.py --root DIR -o FILE      (real pictures of the sets below DIR beside them)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pairs import SETS
from PIL import Image
from synthetic import HERE, TASKS, degradations
from torch import Tensor

from opir_lightning.data.images import read_rgb, to_tensor
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.pictures import panel

SEVERITIES = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)
PHOTOGRAPHS = ("heldout/friends.jpg", "heldout/bridge.jpg")
CROP = (240, 320)  # of the photograph at full size: streaks and kernels have their sizes in pixels
SHOWN_WIDTH = 256
LARGEST_BYTES = 600 * 1024


BESIDE = {  # a real picture for each row: sets of pairs.py, and which picture
    "noise": [("PolyU", 0), ("PolyU", 40)],
    "rain": [("RainSIRR", 3), ("Rain100H", 5)],
    "haze": [("SOTS-outdoor", 0), ("O-HAZE", 0)],
    "blur": [("Levin", 2), ("GoPro", 0)],
    "low_light": [("LOL-v1-train", 10), ("LOL-v1-eval15", 2)],
}


def centre(image: Tensor) -> Tensor:
    """The middle 240x320 pixels, of a smaller picture what there is."""
    top, left = (max(side - wanted, 0) // 2 for side, wanted in zip(image.shape[1:], CROP, strict=True))
    return image[:, top : top + CROP[0], left : left + CROP[1]].contiguous()


def real_picture(root: Path, name: str, number: int) -> Tensor:
    """The centre of a real degraded picture."""
    (chosen,) = (one for one in SETS if one.name == name)
    items = chosen.source.items(root, embedded="train")
    if not items:
        raise SystemExit(f"'{root}' does not hold {name}.")
    return centre(to_tensor(read_rgb(items[min(number, len(items) - 1)].degraded)))


def photograph(name: str) -> Tensor:
    """The centre of an embedded photograph, ``(3, 240, 320)``."""
    return centre(to_tensor(read_rgb(EMBEDDED / name)))


def save_small_enough(sheet: Image.Image, path: Path) -> None:
    """As JPEG with the best quality that keeps the file within LARGEST_BYTES."""
    for quality in range(90, 50, -4):
        sheet.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LARGEST_BYTES:
            return
    raise RuntimeError(f"'{path}' has {path.stat().st_size} bytes at quality {quality}; show smaller pictures.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default", help="file in conf/degradations, without its ending")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--root", type=Path, help="folder of the real sets, as for data.root")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "severities.jpg")
    arguments = parser.parse_args()
    if arguments.root is not None and arguments.output == HERE / "severities.jpg":
        parser.error("give -o as well: the real pictures are not free, and severities.jpg is shown with the study")
    torch.set_num_threads(1)
    rows = {}
    for task in TASKS:
        for number, name in enumerate(PHOTOGRAPHS):
            # One seed a row: along a row, more of the same rain, blur or darkness.
            label = f"{task.replace('_', ' ')} {number + 1}"
            rows[label] = [
                degradations(arguments.config)[task](
                    photograph(name),
                    generator=torch.Generator().manual_seed(arguments.seed + number),
                    severity=severity,
                )
                for severity in SEVERITIES
            ]
            if arguments.root is not None:
                rows[label].append(real_picture(arguments.root, *BESIDE[task][number]))
    columns = [f"severity {severity:g}" for severity in SEVERITIES]
    sheet = panel(rows, columns=columns if arguments.root is None else [*columns, "real"], width=SHOWN_WIDTH)
    save_small_enough(sheet, arguments.output)
    print(f"{arguments.output}: {sheet.width}x{sheet.height}, {arguments.output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
