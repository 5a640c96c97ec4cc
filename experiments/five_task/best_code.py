"""How much better could a network restore if its code were the best there is?

python experiments/five_task/best_code.py WEIGHTS data.root=DIR [--pictures N] [-o FILE]

Every so many validation photographs are damaged as `task_code.py` does it. Their code is estimated from the centre of
256x256, and the inner 128x128 are restored: with that code, and with the one that gradient descent finds beside the
good picture. What lies between the two is lost by the estimator, what remains by the operators. Part of it nobody can
know: how bright a dark scene was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from task_code import CENTRE, HERE, SEVERITIES, damaged, validation_data
from torch import Tensor
from tqdm import tqdm

from opir_lightning.checkpoints import load_model
from opir_lightning.data.evaluation import EvaluationSet
from opir_lightning.models import OPIR
from opir_lightning.provenance import provenance
from opir_lightning.types import Code

INNER = slice(CENTRE // 4, 3 * CENTRE // 4)
SMALLEST = 1e-3  # probability of a task, and what a severity keeps away from its ends: logarithms are taken
BOUND = 1e-6  # of the mean square error, 60 dB


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Of each picture, in dB."""
    return -10 * ((restored.clamp(0, 1) - clean).square().mean((1, 2, 3)) + BOUND).log10()


def best_code(model: OPIR, degraded: Tensor, clean: Tensor, code: Code, *, steps: int, lr: float = 0.08) -> Tensor:
    """PSNR of each picture with the best code that was met, in dB, ``(B,)``; the first one is ``code`` itself.

    Args:
        model: with both stages connected.
        degraded, clean: ``(B, 3, H, W)``.
        code: where it begins.
        steps: of Adam, on the logarithms of the tasks' shares and the inverse hyperbolic tangents of the severities.
        lr: its learning rate.
    """
    logits = code.task.clamp_min(SMALLEST).log().requires_grad_()
    severity = code.severity.clamp(SMALLEST - 1, 1 - SMALLEST).atanh().requires_grad_()
    optimizer = torch.optim.Adam([logits, severity], lr=lr)
    best = psnr(model(degraded, code).refined, clean).detach()
    for _ in range(steps):
        tried = psnr(model(degraded, code._replace(task=logits.softmax(1), severity=severity.tanh())).refined, clean)
        best = torch.maximum(best, tried.detach())
        optimizer.zero_grad()
        (-tried.sum()).backward()
        optimizer.step()
    return best


def measure(model: OPIR, pictures: EvaluationSet, number: int, steps: int) -> dict[str, float]:
    """Mean PSNR in dB of the inputs, with the estimated and with the best code."""
    chosen = [pictures[index] for index in range(0, len(pictures), max(len(pictures) // number, 1))][:number]
    degraded, clean = (torch.stack(part) for part in zip(*((s.degraded, s.clean) for s in chosen), strict=True))
    code = model.estimate_code(degraded)
    degraded, clean = (part[..., INNER, INNER] for part in (degraded, clean))
    with torch.no_grad():
        estimated = model(degraded, code).refined
    values = {
        "input": psnr(degraded, clean),
        "estimated": psnr(estimated, clean),
        "best": best_code(model, degraded, clean, code, steps=steps),
    }
    return {name: round(value.mean().item(), 2) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("overrides", nargs="*", help="data.root=DIR")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "best_code.json")
    arguments = parser.parse_args()
    model, _ = load_model(arguments.weights)
    model.eval().requires_grad_(False)
    model.detach_between_stages = False
    data, rows = validation_data(arguments.overrides), {}
    damages = [(whole, severity) for whole in data.val_sets if whole.name != "undamaged" for severity in SEVERITIES]
    for whole, severity in tqdm(damages):
        name = f"{whole.name} {severity:g}"
        rows[name] = measure(model, damaged(whole, model.tasks, severity), arguments.pictures, arguments.steps)
        tqdm.write(f"{name:16} " + "  ".join(f"{kind} {value:.2f}" for kind, value in rows[name].items()))
    record = {"meta": provenance(), "weights": arguments.weights, "pictures": arguments.pictures, "rows": rows}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
