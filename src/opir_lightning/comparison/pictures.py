"""The pictures on which two groups differ most, restored anew from the weights and validation sets of their runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from opir_lightning.comparison.groups import Group
from opir_lightning.comparison.runs import Run
from opir_lightning.comparison.scores import SetKey, is_number
from opir_lightning.comparison.statistics import paired
from opir_lightning.errors import UserError

if TYPE_CHECKING:
    from opir_lightning.data.evaluation import EvaluationSet
    from opir_lightning.data.samples import Sample

WIDTH, DETAIL, MAGNIFIED = 360, 90, 4  # pixels: of a whole picture, of the part that is shown, and how large
AGREES = 0.1  # dB between the score that a run noted and that of the picture restored now


class Shown(NamedTuple):
    """One picture, and what two groups make of it.

    Attributes:
        name: of the picture.
        key: its set.
        words: what the scores are.
        labels: of the columns: degraded, the two groups, clean.
        whole: the pictures, as data for a page.
        detail: the part on which the two groups differ most.
    """

    name: str
    key: SetKey
    words: str
    labels: list[str]
    whole: list[str]
    detail: list[str]


def most_different(
    group: Group, reference: Group, keys: Sequence[SetKey], profile: str, count: int
) -> list[tuple[SetKey, str, float]]:
    """Set, name and difference in PSNR of the pictures with the largest differences, whoever is better.

    The largest of each set come first: on one hard set all the pictures may differ more than on any other.
    """
    ranked = []
    for key in keys:
        by_name = paired(group, reference, key, profile, "psnr")[0]
        ordered = sorted(by_name.items(), key=lambda item: -abs(item[1]))
        ranked += [(place, key, name, difference) for place, (name, difference) in enumerate(ordered)]
    ranked.sort(key=lambda row: (row[0], -abs(row[3])))
    return [row[1:] for row in ranked[:count]]


def show(group: Group, reference: Group, key: SetKey, name: str, profile: str) -> Shown:
    """Restore one picture with both groups, each by one of its runs, of the same seed where there is one.

    Raises:
        UserError: weights or data are not there any more, or are not those that were scored.
    """
    first, second = _runs(reference, group, key)
    degraded, clean, results, words = None, None, [], []
    for label, run in ((reference.name, first), (group.name, second)):
        before, result, clean, psnr = _restore(run, key, name, profile)
        if degraded is not None and not np.array_equal(before, degraded):
            raise UserError("The degraded pictures of the two runs are not the same.")
        degraded = before
        results.append(result)
        words.append(f"{label}: {psnr:.2f} dB{'' if run.seed is None else f' (seed {run.seed})'}")
    assert degraded is not None
    assert clean is not None
    pictures = [degraded, *results, clean]
    box = _largest_difference(*results)
    return Shown(
        name,
        key,
        "; ".join(words),
        ["degraded", reference.name, group.name, "clean"],
        [_data(_smaller(picture)) for picture in pictures],
        [_data(_magnified(picture, box)) for picture in pictures],
    )


def _runs(reference: Group, group: Group, key: SetKey) -> tuple[Run, Run]:
    seeds = {run.seed for run in reference.runs_with(key)} & {run.seed for run in group.runs_with(key)}
    pair = [next((run for run in g.runs_with(key) if not seeds or run.seed in seeds), None) for g in (reference, group)]
    assert pair[0] is not None
    assert pair[1] is not None
    return pair[0], pair[1]


def _restore(run: Run, key: SetKey, name: str, profile: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Degraded, restored and clean pixels, and the PSNR; the published profile crops what goes in."""
    import torch

    from opir_lightning.checkpoints import load_model
    from opir_lightning.inference import choose_tile, restore_tiled
    from opir_lightning.metrics import published_crop, score
    from opir_lightning.pictures import to_pixels

    if run.weights is None:
        raise UserError(f"The weights of '{run.path}' are not there any more.")
    model, _ = load_model(run.weights)
    sample = _sample(evaluation_set(run, key, model.tasks), name)
    degraded, clean = sample.degraded[None], sample.clean[None]
    if profile == "published":
        degraded, clean = published_crop(degraded), published_crop(clean)
    task = sample.task if run.config.get("task_code") == "label" and sample.task >= 0 else None
    with torch.inference_mode():
        tile = choose_tile("auto", *degraded.shape[-2:])
        restored = restore_tiled(model, degraded, tile=tile, overlap=model.receptive_field, task=task).refined
    psnr = float(score(restored, clean, profile="published" if profile == "published" else "full")["psnr"])
    noted = run.sets[key].pictures[name][profile]["psnr"]
    if noted is None or abs(psnr - noted) > AGREES:
        raise UserError(
            f"Restored now it scores {psnr:.2f} dB, and '{run.path}' noted {noted}: weights or data have changed."
        )
    return to_pixels(degraded[0]), to_pixels(restored[0]), to_pixels(clean[0]), psnr


def _sample(pictures: EvaluationSet, name: str) -> Sample:
    for index, item in enumerate(pictures.items):
        if item.name == name:
            return pictures[index]
    raise UserError(f"The picture '{name}' is not there any more.")


def evaluation_set(run: Run, key: SetKey, tasks: Sequence[str]) -> EvaluationSet:
    """The set as the run scored it.

    Only classes of this package are built from what a run's configuration names; a source or degradation of somebody
    else's is not, because that would run code that a file chooses.

    Raises:
        UserError: its pictures are not there any more, or it is of other classes.
    """
    from opir_lightning.data.evaluation import VAL_SEVERITY, EvaluationSet
    from opir_lightning.data.store import ImageStore

    if key.origin == "while training":
        raise UserError("Of a validation while training there are no scores of pictures.")
    data = _table(run.config.get("data"))
    root, most = _path(run, data.get("root")), data.get("val_pictures")
    if key.origin == "validation":
        node, severity = _table(data.get("val")).get(key.name), data.get("val_severity", VAL_SEVERITY)
    else:
        benchmark = _table(run.config.get("benchmark"))
        node = _table(benchmark.get("embedded" if root is None else "sets")).get(key.name)
        severity = benchmark.get("severity")
    if not isinstance(node, Mapping):
        raise UserError(f"The configuration of '{run.path}' does not know the set '{key.name}'.")
    source = _build(node)
    items = source.items(root, embedded="heldout")
    if not items and root is not None and key.origin == "validation":
        items = source.items(None, embedded="heldout")  # as a training validates where the root has no such pictures
    if not items:
        raise UserError(f"The pictures of the set '{key.name}' are not there any more ({root}).")
    items = items[:most] if isinstance(most, int) else items
    ends = [float(end) for end in severity if is_number(end)] if isinstance(severity, list | tuple) else []
    pair = (ends[0], ends[1]) if len(ends) == 2 else None
    return EvaluationSet(key.name, source, items, tasks=tasks, store=ImageStore(), severity=pair)


def _table(node: Any) -> Mapping[str, Any]:
    """A part of a configuration; an empty one where the file has something else there."""
    return node if isinstance(node, Mapping) else {}


def _path(run: Run, root: Any) -> Path | None:
    return None if root is None else run.cwd / str(root)


def _build(node: Any) -> Any:
    """A source or degradation of this package from its configuration."""
    from opir_lightning import data, degradations

    if isinstance(node, list):
        return [_build(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    known = {f"opir_lightning.data.{c.__name__}": c for c in (data.BenchmarkNoise, data.CleanFolder, data.PairedFolder)}
    for c in ("Blur", "Compose", "Haze", "Identity", "LowLight", "Noise", "Rain"):
        known[f"opir_lightning.degradations.{c}"] = getattr(degradations, c)
    target = node.get("_target_")
    if target not in known:
        raise UserError(f"Its pictures come from '{target}', which is no source or degradation of this program.")
    arguments = {str(key): _build(value) for key, value in node.items() if key != "_target_"}
    try:
        return known[target](**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"'{target}' cannot be built from the run's settings ({error}).") from error


def _largest_difference(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Top and left of the square in which two pictures differ most."""
    import cv2

    error = np.abs(first.astype(np.float32) - second).mean(2)
    height, width = error.shape
    side = min(DETAIL, height, width)
    means = cv2.blur(error, (side, side), anchor=(0, 0))[: height - side + 1, : width - side + 1]
    top, left = np.unravel_index(int(means.argmax()), means.shape)
    return int(top), int(left)


def _smaller(pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(pixels)
    if picture.width > WIDTH:
        size = WIDTH, max(1, round(picture.height * WIDTH / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def _magnified(pixels: np.ndarray, place: tuple[int, int]) -> Image.Image:
    top, left = place
    part = Image.fromarray(pixels[top : top + DETAIL, left : left + DETAIL])
    return part.resize((part.width * MAGNIFIED, part.height * MAGNIFIED), Image.Resampling.NEAREST)


def _data(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def show_all(
    groups: Sequence[Group], reference: Group, keys: Sequence[SetKey], profile: str, count: int
) -> tuple[list[Shown], list[str]]:
    """Pictures of every group beside the reference, and a line for each that cannot be shown; with a progress bar."""
    from tqdm import tqdm

    wanted = [
        (group, key, name)
        for group in groups
        if group is not reference
        for key, name, _ in most_different(group, reference, keys, profile, count)
    ]
    shown, missing = [], dict[str, None]()
    for group, key, name in tqdm(wanted, desc="pictures", unit="picture", disable=None):
        try:
            shown.append(show(group, reference, key, name, profile))
        except UserError as error:
            missing[f"{group.name}, {key}: {error}"] = None
    return shown, list(missing)
