"""Put trained and scored weights into the package: ``python experiments/five_task/ship.py NAME RUN_DIR RESULTS``.

NAME is what the package calls them, RUN_DIR the folder of the training, RESULTS the ``results.json`` of
``python -m opir_lightning.evaluate checkpoint=RUN_DIR data.root=DIR``. Settings, training data, crops, commit and
scores go into the header; the checksums are written anew, and in this folder the record ``NAME.json``, the validation
curves ``NAME_curves.png`` and examples ``NAME.jpg`` of the embedded held-out photographs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from torch import Tensor

from opir_lightning.checkpoints import CHECKSUMS, load_model, save_weights
from opir_lightning.config import config_dir, register_schemas
from opir_lightning.data.images import list_images, read_rgb, to_tensor
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.models import OPIR
from opir_lightning.pictures import panel

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parents[1] / "src" / "opir_lightning" / "weights"
SEVERITY, WIDTH = 0.5, 320
KEPT = ("published", "full", "uncertainty", "count", "task_accuracy")


def metadata(header: dict[str, Any], run: Path, results: dict[str, Any], crops_before: int) -> dict[str, Any]:
    """What the header says: of the training, and input and result of every test set."""
    config = yaml.safe_load((run / "config" / "config.yaml").read_text())
    psnr = {
        name: [
            None if value is None else round(value, 2)
            for value in (s["published"]["psnr_input"], s["published"]["psnr"])
        ]
        for name, s in results["sets"].items()
    }
    batch = config["data"]["batch_size"]
    return {
        **header,
        "init": Path(header.get("init") or config.get("init") or "").name,  # a path would say nothing elsewhere
        "crops": crops_before + header["steps"] * batch,
        "crop": config["data"]["crop"],
        "data": _trained_on(run),
        "profile": "published: PSNR in dB of input and result",
        "psnr": psnr,
    }


def _trained_on(run: Path) -> str:
    """The sets and their numbers of pictures, as the run said them when it began."""
    start = "Training on "
    log = next(path for name in ("train.log", "config.log") if (path := run / name).is_file())  # the latter of old runs
    (line,) = {text for text in log.read_text().splitlines() if text.startswith(start)}
    return line.removeprefix(start).rstrip(".")


def validation(run: Path) -> list[dict[str, float]]:
    """Step and scores of each validation."""
    with (run / "log" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/psnr")]
    return [
        {"step": int(row["step"])}
        | {k.removeprefix("val/"): round(float(v), 3) for k, v in row.items() if v and k.startswith("val/")}
        for row in rows
    ]


def curves(rows: list[dict[str, float]]) -> Figure:
    """PSNR of each validation set over the steps, above that of its input."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in sorted(key for key in rows[0] if key.endswith("/psnr") and "undamaged" not in key):
        gains = [row[name] - row[f"{name}_input"] for row in rows]
        axes.plot([row["step"] for row in rows], gains, marker=".", label=name.removesuffix("/psnr").replace("_", " "))
    axes.set(xlabel="steps", ylabel="PSNR above the input in dB", title="validation, averaged weights, stage 2")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def examples(model: OPIR) -> Any:
    """One held-out photograph for each damage: damaged, restored, uncertainty, good."""
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        made = instantiate(compose("train", ["experiment=five_task", "run_dir=."]).degradations, _convert_="all")
    rows: dict[str, list[Tensor]] = {}
    damages = [task for task in model.tasks if task != "none"]
    for number, (task, path) in enumerate(zip(damages, cycle(list_images(EMBEDDED / "heldout")), strict=False)):
        clean = to_tensor(read_rgb(path))
        generator = torch.Generator().manual_seed(number)
        damaged = made[task](clean, generator=generator, severity=SEVERITY)
        with torch.inference_mode():
            restored = model(damaged[None])
        named = model.tasks[int(restored.task_logits.argmax())]
        rows[f"{task}: {path.stem} (named: {named})"] = [damaged, restored.refined[0], restored.uncertainty[0], clean]
    return panel(rows, columns=("damaged", "restored", "uncertainty of stage 1", "good"), width=WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument(
        "--crops-before", type=int, default=0, help="seen by the weights that the training started from"
    )
    parser.add_argument("--commit", help="where the weights do not name the commit of their training")
    arguments = parser.parse_args()
    model, header = load_model(arguments.run)
    results = json.loads(arguments.results.read_text())
    meta = metadata(header.metadata, arguments.run, results, arguments.crops_before)
    if arguments.commit:
        meta["commit"] = arguments.commit
    save_weights(WEIGHTS / f"{arguments.name}.safetensors", model, meta)
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(WEIGHTS.glob("*.safetensors"))]
    (WEIGHTS / CHECKSUMS).write_text("".join(sums))
    rows = validation(arguments.run)
    record = {
        "training": meta,
        "evaluation": {
            key: Path(value).name if key == "checkpoint" else value  # a path would say nothing elsewhere
            for key, value in results["meta"].items()
            if key != "weights"
        },
        "sets": {name: {key: scores[key] for key in KEPT} for name, scores in results["sets"].items()},
        "validation": rows,
    }
    (HERE / f"{arguments.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    curves(rows).savefig(HERE / f"{arguments.name}_curves.png", dpi=110)
    examples(model).save(HERE / f"{arguments.name}.jpg", quality=88)


if __name__ == "__main__":
    main()
