"""Batches of steps that went wrong, kept for a look: one file with all that the step saw, and one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.files import write_atomically
from opir_lightning.outside import parse_json
from opir_lightning.pictures import panel
from opir_lightning.types import Batch

FORMAT = "opir-lightning-batch/2"
SHOWN = 8  # samples in the picture
MARK = (1.0, 0.0, 1.0)  # of pixels that are not finite


def save_batch(path: Path, batch: Batch, about: Mapping[str, Any], numbers: Sequence[int] | None = None) -> None:
    """Write a batch as one safetensors file, atomically.

    Args:
        path: of the file.
        batch: on any device.
        about: what else is to be known, for JSON; its floats come back exactly, also those that are not finite.
        numbers: of the samples, where they have any.
    """
    tensors = {name: getattr(batch, name) for name in ("degraded", "clean", "task", "label_given", "heard")}
    if numbers is not None:
        tensors["numbers"] = torch.tensor(numbers, dtype=torch.int64)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "about": json.dumps({**about, "names": list(batch.name)}, default=str)}
    write_atomically(path, safetensors.torch.save(tensors, header))


def load_batch(path: Path | str) -> tuple[Batch, dict[str, Any]]:
    """Read what `save_batch` wrote.

    Returns:
        The batch, on the CPU, and what is known about it: ``step``, ``epoch``, ``terms`` of the loss,
        ``gradient_norm``, ``sources``, the run's ``settings``, and ``numbers`` of the samples, where they have any:
        ``RestorationData.mixture[number]`` makes such a sample anew.

    Raises:
        UserError: it is no such file.
    """
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError) as error:
        raise UserError(f"The batch '{path}' cannot be read: {error}.") from error
    if header.get("format") != FORMAT:
        raise UserError(f"'{path}' is no batch that a training kept; those are in the run's folder bad_batches.")
    try:
        about = parse_json(header["about"])
        if "numbers" in tensors:
            about["numbers"] = tensors.pop("numbers").tolist()
        return Batch(**tensors, name=about.pop("names")), about
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"The batch '{path}' is damaged, or another version of this program kept it.") from error


def draw_batch(batch: Batch, labels: Sequence[str], first: Sequence[int] = ()) -> Image.Image:
    """Degraded and clean pictures side by side; pixels that are not finite are magenta.

    Args:
        batch: of which the first eight samples are drawn.
        labels: one for each sample.
        first: positions of the samples that come before the others.
    """
    order = [*first, *(place for place in range(len(labels)) if place not in first)][:SHOWN]
    rows = {
        f"{place}: {labels[place]}": (_marked(batch.degraded[place]), _marked(batch.clean[place])) for place in order
    }
    return panel(rows, columns=("degraded", "clean"))


def _marked(picture: Tensor) -> Tensor:
    picture = picture.detach().float().cpu()
    finite = picture.isfinite().all(0)
    return torch.where(finite, picture, torch.tensor(MARK)[:, None, None])
