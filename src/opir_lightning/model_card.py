"""The page of a model on the hub, written from what its weights say about themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

PAPER = "*From Physical Degradation Models to Task-Aware All-in-One Image Restoration* (OPIR, arXiv:2601.10192)"
BARELY = 0.1  # dB; a set that gains less is listed among what the model cannot do

# What the hub's search calls the tasks; others go by their own names.
_TAGS = {
    "noise": "denoising",
    "rain": "deraining",
    "haze": "dehazing",
    "blur": "deblurring",
    "low_light": "low-light-enhancement",
}
# What of the metadata tells how the weights came about, in this order; the rest is in the file.
_RECIPE = {
    "data": "data",
    "experiment": "experiment",
    "init": "started from",
    "steps": "steps",
    "crops": "training crops",
    "crop": "side of a crop, pixels",
    "seed": "seed",
    "device": "device",
    "opir_lightning": "version of OPIR Lightning",
    "commit": "commit",
    "torch": "torch",
}


def write_card(
    repo: str, *, tasks: Iterable[str], parameters: int, metadata: Mapping[str, Any], license_name: str
) -> str:
    """Markdown with front matter; what the metadata does not tell is left out, never invented.

    Args:
        repo: ``"owner/name"``, for the title and the example.
        tasks: the model's tasks; ``"none"`` is the undamaged picture.
        parameters: their number.
        metadata: of the weights: ``data``, ``steps``, ... as a training writes them; ``psnr``, by name of the test set
            either the score or [of the input, of the result]; ``limits``, a text about what the model cannot do.
        license_name: the hub's name of the licence.
    """
    damages = [task for task in tasks if task != "none"]
    parts = [
        _front_matter(damages, license_name),
        f"# {repo.split('/')[-1]}\n\n{_what_it_is(damages, parameters)}",
        _usage(repo),
        _training(metadata),
        _scores(metadata),
        _limits(metadata),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(damages: list[str], license_name: str) -> str:
    tags = ["image-restoration", "opir", *(_TAGS.get(task, task) for task in damages)]
    lines = [
        f"license: {_quoted(license_name)}",
        "library_name: opir-lightning",
        "pipeline_tag: image-to-image",
        "tags:",
    ]
    return "\n".join(["---", *lines, *(f"- {_quoted(tag)}" for tag in tags), "---"])


def _what_it_is(damages: list[str], parameters: int) -> str:
    undone = ", ".join(task.replace("_", " ") for task in damages) or "nothing by name"
    return (
        f"A network of {parameters:,} parameters that restores pictures. It was trained to undo: {undone}. For every "
        "pixel it predicts the inverse of the degradation, a small kernel with an offset, and applies it; a map tells "
        "how far off it expects to be.\n\n"
        f"Made with OPIR Lightning, an implementation from the published description of {PAPER}. "
        "None of the authors' numbers are claimed."
    )


def _usage(repo: str) -> str:
    return f"""## Use

```
pip install 'opir-lightning[hub]'
python -m opir_lightning.restore PICTURES -o restored --weights {repo}
```

```python
from opir_lightning import Restorer
from PIL import Image

restorer = Restorer.from_pretrained("{repo}")
restorer.restore_image(Image.open("picture.jpg")).save("restored.png")
restorer("picture.jpg").uncertainty  # (1, 1, H, W): expected absolute error of stage 1
```"""


def _training(metadata: Mapping[str, Any]) -> str:
    told = {key: value for key, value in metadata.items() if value not in (None, "")}
    if "init" in told:
        told["init"] = PurePath(str(told["init"])).name  # the folders are the owner's own business
    lines = [f"- {label}: {_plain(told[key])}" for key, label in _RECIPE.items() if key in told]
    return "\n".join(["## Training", "", *lines]) if lines else ""


def _scores(metadata: Mapping[str, Any]) -> str:
    rows = [
        f"| {_plain(name)} | {'' if before is None else f'{before:.2f}'} | {after:.2f} |"
        for name, before, after in _pairs(metadata)
    ]
    if not rows:
        return ""
    rule = _plain(metadata.get("profile") or "PSNR in dB")
    head = [f"## Scores\n\n{rule}:", "", "| test set | input | result |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _limits(metadata: Mapping[str, Any]) -> str:
    lines = [_plain(metadata["limits"])] if metadata.get("limits") else []
    for name, before, after in _pairs(metadata):
        if before is not None and after < before + BARELY:
            lines.append(f"{_plain(name)} is not restored: {before:.2f} dB before, {after:.2f} dB after.")
    return "\n".join(["## What it cannot do", "", *(f"- {line}" for line in lines)]) if lines else ""


def _pairs(metadata: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """Name, score of the input where it is known, score of the result; what has another form is passed over."""
    table, found = metadata.get("psnr"), []
    if isinstance(table, int | float):
        table = {"all test sets": table}
    for name, value in table.items() if isinstance(table, Mapping) else ():
        before, after = value if isinstance(value, list | tuple) and len(value) == 2 else (None, value)
        if isinstance(after, int | float) and isinstance(before, int | float | None):
            found.append((name, before, after))
    return found


def _plain(value: Any) -> str:
    """A value of the metadata as text that neither ends its line nor its cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _quoted(text: str) -> str:
    """A YAML string in which nothing has a meaning."""
    return "'" + " ".join(text.split()).replace("'", "''") + "'"
