"""Each synthetic degradation from faint to heavy, on two embedded photographs.

python experiments/degradations/figure.py              (writes severities.jpg beside this file, some seconds)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
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


def photograph(name: str) -> Tensor:
    """The centre of an embedded photograph, ``(3, 240, 320)``."""
    image = to_tensor(read_rgb(EMBEDDED / name))
    top, left = ((side - wanted) // 2 for side, wanted in zip(image.shape[1:], CROP, strict=True))
    return image[:, top : top + CROP[0], left : left + CROP[1]].contiguous()


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
    parser.add_argument("-o", "--output", type=Path, default=HERE / "severities.jpg")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for task in TASKS:
        for number, name in enumerate(PHOTOGRAPHS):
            # One seed a row: along a row, more of the same rain, blur or darkness.
            rows[f"{task.replace('_', ' ')} {number + 1}"] = [
                degradations(arguments.config)[task](
                    photograph(name),
                    generator=torch.Generator().manual_seed(arguments.seed + number),
                    severity=severity,
                )
                for severity in SEVERITIES
            ]
    sheet = panel(rows, columns=[f"severity {severity:g}" for severity in SEVERITIES], width=SHOWN_WIDTH)
    save_small_enough(sheet, arguments.output)
    print(f"{arguments.output}: {sheet.width}x{sheet.height}, {arguments.output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
