"""Does the uncertainty map mean what it says, and would a map without parameters do as well?

python experiments/five_task/uncertainty.py WEIGHTS data.root=DIR [-o FILE]

Every picture of the test sets (the embedded held-out ones without data.root) is restored by stage 1, blind. Three maps
are held against its true absolute error: the learned one, the mean of the taps (EfDeRain+, arXiv:2201.02366), and the
difference between result and input. Rank correlation over 8x8 blocks, and the area under the sparsification error
curve (AUSE, lower is better), both as `opir_lightning.metrics.uncertainty_scores` defines them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from tqdm import tqdm

from opir_lightning.checkpoints import load_model
from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.evaluate import find_sets
from opir_lightning.metrics import uncertainty_scores
from opir_lightning.models import OPIR
from opir_lightning.provenance import provenance

HERE = Path(__file__).resolve().parent
SCORES = {"rank": "rank_correlation_block8", "ause": "ause"}


@torch.inference_mode()
def maps_and_error(model: OPIR, degraded: Tensor, clean: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The three maps of one picture and its true absolute error, ``(1, 1, H, W)`` each."""
    code = model.estimate_code(degraded)
    operator = model.predict_operator(degraded, torch.ones_like(degraded[:, :1]), code, stage=0)
    coarse = model.apply_operator(degraded, operator)
    maps = {
        "learned": model.perceive_uncertainty(degraded, coarse, operator, code),
        "tap_mean": model.tap_mean(operator),
        "change": (coarse - degraded).abs().mean(1, keepdim=True),
    }
    return maps, (coarse.clamp(0, 1) - clean).abs().mean(1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("overrides", nargs="*", help="data.root=DIR")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "uncertainty.json")
    arguments = parser.parse_args()
    model, _ = load_model(arguments.weights)
    model.eval()
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("evaluate", [f"checkpoint={arguments.weights}", "run_dir=.", *arguments.overrides])
    rows: dict[str, Any] = {}
    for evaluation_set in tqdm(find_sets(check_keys(config), model.tasks), desc="sets"):
        sums: dict[str, list[float]] = {}
        for index in range(len(evaluation_set)):
            sample = evaluation_set[index]
            maps, error = maps_and_error(model, sample.degraded[None], sample.clean[None])
            for name, map_ in maps.items():
                values = uncertainty_scores(map_, error)
                for short, long in SCORES.items():
                    sums.setdefault(f"{name}_{short}", []).append(float(values[long]))
        rows[evaluation_set.name] = {name: sum(values) / len(values) for name, values in sums.items()}
    rows["mean of the sets"] = {
        name: sum(row[name] for row in rows.values()) / len(rows) for name in next(iter(rows.values()))
    }
    for name, row in rows.items():
        print(f"{name:18}" + "  ".join(f"{score} {value:5.2f}" for score, value in row.items()))
    record = {"meta": provenance(), "weights": arguments.weights, "sets": rows}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
