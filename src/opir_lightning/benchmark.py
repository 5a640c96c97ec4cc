"""Score a network on evaluation sets, picture by picture, by the protocol of `opir_lightning.metrics`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from opir_lightning.data.evaluation import EvaluationSet
from opir_lightning.data.samples import Sample
from opir_lightning.errors import UserError
from opir_lightning.files import write_atomically
from opir_lightning.inference import TileSize, choose_tile, restore_tiled
from opir_lightning.metrics import CROP_MULTIPLE, Profile, published_crop, score, uncertainty_scores
from opir_lightning.models import OPIR
from opir_lightning.types import Restoration

Scores = dict[str, dict[str, float]]
"""By profile (and "uncertainty"), then by the name of the score."""


def score_sets(
    model: OPIR,
    sets: Sequence[EvaluationSet],
    *,
    task_code: Literal["blind", "label"],
    tile: TileSize = "auto",
) -> dict[str, dict[str, Any]]:
    """Score whole sets, with a progress bar.

    Args:
        model: in evaluation mode.
        sets: what to score.
        task_code: ``blind`` estimates the code, ``label`` gives the set's task.
        tile: restore in tiles of this side; None: in one piece; ``auto``: in one piece up to a megapixel. The overlap
            covers the receptive field, so the scores are those of one piece.

    Returns:
        By the name of the set: the mean of every score (``published``, ``full``, ``uncertainty``), ``count``,
        ``task_accuracy`` and the scores of every picture under ``pictures``.

    Raises:
        UserError: a picture is too small to be scored, or two of a set have the same name.
    """
    results: dict[str, dict[str, Any]] = {}
    with tqdm(total=sum(len(s) for s in sets), desc="scoring", unit="picture") as bar:
        for evaluation_set in sets:
            bar.set_postfix_str(evaluation_set.name)
            pictures, named = {}, []
            for index in range(len(evaluation_set)):
                sample = evaluation_set[index]
                if sample.name in pictures:
                    raise UserError(f"Two pictures of the set '{evaluation_set.name}' are called '{sample.name}'.")
                pictures[sample.name], named_rightly = _score_picture(model, sample, task_code, tile)
                named.append(named_rightly)
                bar.update()
            results[evaluation_set.name] = {
                **_means(pictures.values()),
                "count": len(pictures),
                "task_accuracy": sum(named) / len(named) if evaluation_set.label >= 0 else None,
                "pictures": pictures,
            }
    return results


def _score_picture(model: OPIR, sample: Sample, task_code: str, tile: TileSize) -> tuple[Scores, bool]:
    degraded, clean = sample.degraded[None], sample.clean[None]
    if min(degraded.shape[-2:]) < CROP_MULTIPLE:
        raise UserError(f"The picture '{sample.name}' is smaller than {CROP_MULTIPLE} pixels; it cannot be scored.")
    device = next(model.parameters()).device

    def restore(image: Tensor) -> Restoration:
        label = torch.tensor([sample.task if task_code == "label" else -1], device=device)
        with torch.inference_mode():
            code = model.estimate_code(image.to(device), label)
        side = choose_tile(tile, *image.shape[-2:])
        return restore_tiled(model, image, tile=side, overlap=model.receptive_field, code=code)

    whole = restore(degraded)
    cropped = published_crop(degraded)
    # The published protocol crops the model's input; where nothing is cut, the result is the same.
    restored = whole if cropped.shape == degraded.shape else restore(cropped)
    scores: Scores = {
        "published": _profile(cropped, restored, published_crop(clean), "published"),
        "full": _profile(degraded, whole, clean, "full"),
    }
    error = (whole.coarse.clamp(0, 1) - clean).abs().mean(1, keepdim=True)
    scores["uncertainty"] = {k: float(v) for k, v in uncertainty_scores(whole.uncertainty, error).items()}
    return scores, int(whole.task_logits.argmax()) == sample.task


def _profile(degraded: Tensor, restored: Restoration, clean: Tensor, profile: Profile) -> dict[str, float]:
    before, first, last = (
        score(picture, clean, profile=profile) for picture in (degraded, restored.coarse, restored.refined)
    )
    return {
        "psnr_input": float(before["psnr"]),
        "psnr_coarse": float(first["psnr"]),
        "psnr": float(last["psnr"]),
        "ssim_input": float(before["ssim"]),
        "ssim_coarse": float(first["ssim"]),
        "ssim": float(last["ssim"]),
    }


def _means(pictures: Iterable[Scores]) -> Scores:
    pictures = list(pictures)
    return {
        group: {name: sum(p[group][name] for p in pictures) / len(pictures) for name in names}
        for group, names in pictures[0].items()
    }


def print_table(results: Mapping[str, Mapping[str, Any]], *, title: str) -> None:
    """Print input, stage 1, stage 2 and SSIM of every set, both profiles; the rule stands with the numbers."""
    table = Table(title=title, caption="PSNR in dB (RGB, mean over pictures) | profiles as in opir_lightning.metrics")
    table.add_column("set")
    table.add_column("pictures", justify="right")
    table.add_column("task named", justify="right")
    for profile in ("published", "full"):
        for column in ("input", "stage 1", "stage 2", "SSIM"):
            table.add_column(f"{profile}\n{column}", justify="right")
    for name, result in results.items():
        accuracy = result["task_accuracy"]
        cells = [name, str(result["count"]), "" if accuracy is None else f"{accuracy:.0%}"]
        for profile in ("published", "full"):
            values = result[profile]
            cells += [f"{values[key]:.2f}" for key in ("psnr_input", "psnr_coarse", "psnr")] + [f"{values['ssim']:.4f}"]
        table.add_row(*cells)
    Console(width=None if Console().is_terminal else 140).print(table)


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON; an infinite score (an undamaged input against itself) becomes null."""
    write_atomically(path, (json.dumps(_finite(results), indent=1) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
