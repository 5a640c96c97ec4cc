"""What a training run ends with: weights, scores, a contact sheet, and what to do next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from opir_lightning.benchmark import score_sets, write_results
from opir_lightning.checkpoints import save_weights
from opir_lightning.data.datamodule import RestorationData
from opir_lightning.data.evaluation import EvaluationSet
from opir_lightning.inference import choose_tile, restore_tiled
from opir_lightning.models import OPIR
from opir_lightning.pictures import panel, save_picture
from opir_lightning.resume import fingerprint

SHEET_WIDTH = 300


def report_run(
    net: OPIR,
    data: RestorationData,
    plain: Mapping[str, Any],
    run_dir: Path,
    *,
    steps: int,
    started: Mapping[str, str],
) -> None:
    """Save the weights, score the validation sets with them, draw them, print the table and the next commands.

    Args:
        net: with the weights to keep.
        data: with its sets prepared.
        plain: the resolved configuration.
        run_dir: where everything goes.
        steps: of the training.
        started: provenance of the training, as it was at its start.
    """
    net.eval()
    meta = {**started, "experiment": plain["name"], "seed": plain["seed"], "init": plain["init"] or "", "steps": steps}
    weights = run_dir / "model.safetensors"
    save_weights(weights, net, meta)
    sets = [val_set.whole() for val_set in data.val_sets]
    results = score_sets(net, sets, task_code=plain["task_code"])
    table = {name: _three(result["published"]) for name, result in results.items()}
    sheet = run_dir / "contact_sheet.png"
    if sets:
        save_picture(_contact_sheet(net, sets, plain["task_code"]), sheet)
    # Last of the files: where it is, the run counts as finished.
    write_results(
        run_dir / "results.json",
        {
            "tasks": {name: values for name, values in table.items() if name != "undamaged"},
            "undamaged": table.get("undamaged"),
            "sets": results,
            "meta": {**meta, "settings": fingerprint(plain)},
        },
    )
    console = Console(soft_wrap=True)
    if sets:
        _print(table, data)
        console.print(f"contact sheet  {_short(sheet)}")
    else:
        console.print(f"Nothing was scored: none of the validation sets (data.val) was found in {data.root}.")
    console.print(f"weights        {_short(weights)}")
    console.print(f"checkpoint     {_short(run_dir / 'checkpoints' / 'last.ckpt')}")
    console.print(_next_commands(weights), highlight=False)


def _three(scores: Mapping[str, float]) -> dict[str, float]:
    return {"input": scores["psnr_input"], "coarse": scores["psnr_coarse"], "refined": scores["psnr"]}


def _print(table: Mapping[str, Mapping[str, float]], data: RestorationData) -> None:
    where = "the embedded held-out photographs" if data.root is None else f"the validation pictures of {data.root}"
    shown = Table(title=f"PSNR in dB on {where}", caption="profile 'published', mean over the pictures")
    for column in ("task", "input", "stage 1", "stage 2", "gain"):
        shown.add_column(column, justify="left" if column == "task" else "right")
    damaged = {name: row for name, row in table.items() if name != "undamaged"}
    for name, row in table.items():
        gain = f"{row['refined'] - row['input']:+.2f}" if name in damaged else ""
        shown.add_row(name, *(f"{row[key]:.2f}" for key in ("input", "coarse", "refined")), gain)
    if damaged:
        mean = {key: sum(row[key] for row in damaged.values()) / len(damaged) for key in ("input", "coarse", "refined")}
        shown.add_section()
        cells = [f"{mean[key]:.2f}" for key in ("input", "coarse", "refined")]
        shown.add_row("mean of the tasks", *cells, f"{mean['refined'] - mean['input']:+.2f}")
    Console().print(shown)


def _contact_sheet(net: OPIR, sets: list[EvaluationSet], task_code: str) -> Any:
    """One picture of each set, another one for each set in turn."""
    rows: dict[str, list[Tensor]] = {}
    for number, evaluation_set in enumerate(sets):
        sample = evaluation_set[number % len(evaluation_set)]
        task = sample.task if task_code == "label" and sample.task >= 0 else None
        tile = choose_tile("auto", *sample.degraded.shape[-2:])
        restored = restore_tiled(net, sample.degraded[None], tile=tile, overlap=net.receptive_field, task=task)
        named = net.tasks[int(restored.task_logits.argmax())]
        pictures = (sample.degraded, restored.coarse[0], restored.uncertainty[0], restored.refined[0], sample.clean)
        rows[f"{evaluation_set.name}: {sample.name}  (named: {named})"] = list(pictures)
    return panel(rows, columns=("degraded", "stage 1", "uncertainty", "stage 2", "clean"), width=SHEET_WIDTH)


def _next_commands(weights: Path) -> str:
    file, python = shlex.quote(_short(weights)), shlex.quote(_short(Path(sys.executable)))
    return (
        "next:\n"
        f"  {python} -m opir_lightning.restore MY_PICTURES -o restored --weights {file} --compare\n"
        f"  {python} -m opir_lightning.evaluate checkpoint={file} data.root=FOLDER_WITH_TEST_SETS\n"
        f"  {python} -m opir_lightning.train experiment=five_task data.root=FOLDER_WITH_TRAINING_SETS"
    )


def _short(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
