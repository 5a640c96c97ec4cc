"""Does the estimated code name the damage, and what would a given label gain?

python experiments/five_task/task_code.py WEIGHTS data.root=DIR [--jpeg QUALITY] [-o FILE]

Every validation photograph (the embedded held-out ones without data.root) is damaged by each task at several
severities, and its centre restored twice: blind, and told the task. A sample counts as named rightly if the likeliest
task is its own. With --jpeg every damaged photograph goes through a file of that quality first, and is restored a third
time: told the task, with the severity that was estimated before the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tqdm import tqdm

from opir_lightning.checkpoints import load_model
from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.data.evaluation import EvaluationSet
from opir_lightning.data.sources import Source
from opir_lightning.degradations import Jpeg
from opir_lightning.metrics import score
from opir_lightning.models import OPIR
from opir_lightning.provenance import provenance

HERE = Path(__file__).resolve().parent
SEVERITIES = (0.3, 0.5, 0.7, 1.0)
CENTRE = 256


def measure(model: OPIR, met: EvaluationSet, before: EvaluationSet | None = None) -> dict[str, Any]:
    """Share that is named rightly, the other names, and the mean PSNR of input, blind and told.

    Args:
        model: in evaluation mode.
        met: the pictures.
        before: the same ones before they went through a file; they give the code of one more restoration.
    """
    named: dict[str, int] = {}
    scores: dict[str, list[float]] = {}
    for index in range(len(met)):
        sample = met[index]
        degraded, clean, task = sample.degraded[None], sample.clean[None], torch.tensor([sample.task])
        with torch.inference_mode():
            blind = model(degraded)
            pictures = {"input": degraded, "blind": blind.refined, "told": model(degraded, task=task).refined}
            if before is not None:
                code = model.estimate_code(before[index].degraded[None], task)
                pictures["told, severity of before"] = model(degraded, code).refined
        name = model.tasks[int(blind.task_logits.argmax())]
        named[name] = named.get(name, 0) + 1
        for kind, picture in pictures.items():
            scores.setdefault(kind, []).append(float(score(picture, clean, profile="published")["psnr"]))
    return {
        "right": named.get(model.tasks[met.label], 0) / len(met),
        "named": named,
        "psnr": {kind: round(sum(values) / len(values), 2) for kind, values in scores.items()},
    }


def validation_data(overrides: list[str]) -> Any:
    """The data of five_task with all its validation photographs, and its own settings changed like this."""
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("train", ["experiment=five_task", "run_dir=.", "data.packs=memory", *overrides])
    data = instantiate(check_keys(config)["data"], _convert_="all")
    data.val_pictures = None
    data.prepare_sets()
    return data


def damaged(whole: EvaluationSet, tasks: Sequence[str], severity: float, source: Source | None = None) -> EvaluationSet:
    """The centres of a set's pictures, all damaged as much; ``source`` may damage them in another way."""
    return EvaluationSet(
        whole.name,
        source or whole.source,
        whole.items,
        tasks=tasks,
        store=whole.store,
        severity=(severity, severity),
        centre=CENTRE,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("overrides", nargs="*", help="data.root=DIR")
    parser.add_argument("--jpeg", type=int, metavar="QUALITY")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "task_code.json")
    arguments = parser.parse_args()
    model, _ = load_model(arguments.weights)
    data = validation_data(arguments.overrides)
    rows: dict[str, Any] = {}
    for whole in tqdm(data.val_sets, desc="sets"):
        sources = [whole.source]
        if arguments.jpeg is not None:
            filed = Jpeg(whole.source.degradation, quality=arguments.jpeg)
            sources.insert(0, replace(whole.source, degradation=filed))
        for severity in SEVERITIES if whole.name != "undamaged" else (0.0,):
            sets = [damaged(whole, model.tasks, severity, source) for source in sources]
            rows[f"{whole.name} {severity:g}"] = measure(model, *sets)
    right = sum(row["right"] for row in rows.values()) / len(rows)
    for name, row in rows.items():
        psnr = "  ".join(f"{kind} {value:.2f}" for kind, value in row["psnr"].items())
        print(f"{name:16} {row['right']:4.0%}  {psnr}  {row['named']}")
    print(f"mean of the rows: {right:.1%}")
    record = {"meta": provenance(), "weights": arguments.weights, "jpeg": arguments.jpeg, "mean": right, "rows": rows}
    arguments.output.write_text(json.dumps(record, indent=1).replace("Infinity", "null") + "\n")


if __name__ == "__main__":
    main()
