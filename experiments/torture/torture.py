"""Kill a training again and again, and see whether it ends with the weights of one that was left alone.

    python experiments/torture/torture.py [--kills 25] [--terms 5] [--seed 0] [--limit 900] [--warm] [-o FOLDER]

A small but real training (two loader processes, a checkpoint every five steps, validations with their pictures) runs
once without interruption and once with kills (SIGKILL) and requests to end (SIGTERM), continued each time by the same
command. The moments are drawn from the seed: some while the process starts, most at a step within the next part of the
training, a third of those as soon as a checkpoint's temporary file is seen. Needs Linux.

With --warm only the processes that are killed while they start are started from nothing; the others are forked from
this one, which has imported the libraries: most of the time goes into imports otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch
from processes import Forked, Process

from opir_lightning.checkpoint_files import LAST, damage, previous_of
from opir_lightning.files import write_atomically
from opir_lightning.provenance import provenance

HERE = Path(__file__).resolve().parent
ORPHAN_SECONDS = 3  # after which a process that outlives its training counts as an orphan
END_SECONDS = 120  # for a training that was told to end
SETTINGS = [
    "experiment=demo",
    "tasks=[none,noise,rain]",
    "threads=1",
    "data.workers=2",
    "data.crop=32",
    "data.batch_size=2",
    "data.epoch_samples=80",
    "data.val_pictures=1",
    "data.val_centre=64",
    "model.width=8",
    "model.middle_blocks=1",
    "model.features=8",
    "trainer.max_time=null",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "callbacks.progress=null",
    "callbacks.health=null",  # seconds and memory differ from run to run
    "callbacks.last.every_n_train_steps=5",
    "callbacks.ema.decay=0.99",
]
Moment = dict[str, Any]


def moments(kills: int, terms: int, steps: int, start: float, seed: int) -> list[Moment]:
    """What is sent when: a kind, a signal, and a time after the start or a step."""
    draw = random.Random(seed)
    signals = ["SIGKILL"] * kills + ["SIGTERM"] * terms
    draw.shuffle(signals)
    at_start = set(draw.sample(range(len(signals)), len(signals) // 5))
    at_step = len(signals) - len(at_start)
    planned: list[Moment] = []
    part = 0
    for number, name in enumerate(signals):
        if number in at_start:
            planned.append({"aim": "start", "signal": name, "after": draw.uniform(0.2, start)})
            continue
        # Each part of the training has one, so that there is something left for the last of them.
        step = int((part + draw.random()) * (steps - 10) / at_step)
        aim = "checkpoint" if part % 3 == 1 and name == "SIGKILL" else "step"
        wait = draw.uniform(0, 0.02 if aim == "checkpoint" else 0.2)
        planned.append({"aim": aim, "signal": name, "step": step, "wait": wait})
        part += 1
    return planned


def start(folder: Path, steps: int, *, warm: bool) -> Process:
    """The same command, every time."""
    arguments = [*SETTINGS, f"trainer.max_steps={steps}", "resume=auto", f"hydra.run.dir={folder}"]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        if warm:
            return Forked(arguments, log.fileno())
        command = [sys.executable, "-m", "opir_lightning.train", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def last_step(folder: Path) -> int:
    """The last step in the log of a run; -1 where there is none."""
    try:
        with (folder / "log" / "metrics.csv").open("rb") as file:
            names = file.readline().decode().strip().split(",")
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
            row = file.read().decode().splitlines()[-1].split(",")
        return int(row[names.index("step")])
    except (OSError, ValueError, IndexError):
        return -1


def wait_for(moment: Moment, process: Process, folder: Path, deadline: float) -> bool:
    """Wait for the moment; whether it came before the training ended by itself."""

    def over() -> bool:
        return process.poll() is not None or time.monotonic() > deadline

    if moment["aim"] == "start":
        begun = time.monotonic()
        while time.monotonic() < begun + moment["after"] and not over():
            time.sleep(0.01)
        return not over()
    before = last_step(folder)
    written = (folder / "log" / "metrics.csv").stat().st_mtime_ns if before >= 0 else 0
    while not over():  # a row of this process, not only one that was there
        step = last_step(folder)
        if step >= moment["step"] and (folder / "log" / "metrics.csv").stat().st_mtime_ns != written:
            break
        time.sleep(0.005)
    if moment["aim"] == "checkpoint":
        while not over() and not any((folder / "checkpoints").glob(".*.tmp")):
            time.sleep(0.0002)
    time.sleep(moment["wait"])
    return not over()


def strike(moment: Moment, process: Process, folder: Path, log_begins: int) -> dict[str, Any]:
    """Send the signal; what is left of the processes and the files then."""
    children = psutil.Process(process.pid).children(recursive=True)
    had_row, log = last_step(folder), folder.parent / f"{folder.name}.log"
    process.send_signal(getattr(signal, moment["signal"]))
    sent = time.monotonic()
    status = process.wait(END_SECONDS)
    ended = time.monotonic() - sent
    _, orphans = psutil.wait_procs(children, timeout=ORPHAN_SECONDS)
    for orphan in orphans:
        orphan.kill()
    last = folder / "checkpoints" / LAST
    said = log.read_bytes()[log_begins:].decode(errors="replace")
    files = {path.name: damage(path) for path in (last, previous_of(last)) if path.exists()}
    return {
        **{key: value if isinstance(value, str) else round(value, 3) for key, value in moment.items()},
        "status": status,
        "seconds_to_end": round(ended, 2),
        "said_how_to_go_on": "resume=auto" in said,
        # Of a process that had the time to say something; a killed one may be cut in the middle of anything.
        "tracebacks": said.count("Traceback (most recent call last)") if moment["signal"] == "SIGTERM" else 0,
        "workers": len(children),
        "orphans": len(orphans),
        "row": had_row,
        "left_unfinished": len(list(folder.glob("checkpoints/.*.tmp"))),
        "damaged": [name for name, problem in files.items() if problem],
        "checkpoint_step": step_of(last),
    }


def step_of(checkpoint: Path) -> int:
    if not checkpoint.is_file():
        return 0
    return int(torch.load(checkpoint, weights_only=True, mmap=True)["global_step"])


def differing(one: Any, other: Any, where: str = "") -> list[str]:
    """Places at which two nested structures are not the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in differing(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [p for i, (a, b) in enumerate(zip(one, other, strict=True)) for p in differing(a, b, f"{where}/{i}")]
    return [] if one == other else [where]


def compare(whole: Path, cut: Path) -> dict[str, Any]:
    """What a training left that was killed, against one that was not."""
    from safetensors.torch import load_file

    states = [torch.load(folder / "checkpoints" / LAST, weights_only=True) for folder in (whole, cut)]
    parts = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")
    scores = [json.loads((folder / "results.json").read_text())["sets"] for folder in (whole, cut)]
    tables = sorted(path.relative_to(whole) for path in whole.glob("*/*.csv"))
    return {
        "weights_differ": differing(*(load_file(folder / "model.safetensors") for folder in (whole, cut))),
        "state_differs": [p for part in parts for p in differing(states[0][part], states[1][part], part)],
        "scores_differ": differing(*scores),
        "tables_differ": [str(t) for t in tables if (whole / t).read_bytes() != (cut / t).read_bytes()],
        "left_unfinished": [path.name for path in cut.rglob(".*.tmp")],
        "steps": [int(state["global_step"]) for state in states],
    }


def run_whole(folder: Path, steps: int, *, warm: bool) -> tuple[float, float]:
    """The training that is left alone: seconds to its first step, and in all."""
    begun = time.monotonic()
    process = start(folder, steps, warm=warm)
    while last_step(folder) < 0 and process.poll() is None:
        time.sleep(0.05)
    first = time.monotonic() - begun
    if process.wait() != 0:
        raise SystemExit(f"The uninterrupted training failed, see {folder}.log")
    return first, time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="how often SIGKILL is sent")
    parser.add_argument("--terms", type=int, default=5, help="how often SIGTERM is sent")
    parser.add_argument("--steps", type=int, default=200, help="of the training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which no more signals are sent")
    parser.add_argument("--warm", action="store_true", help="fork what is not killed while it starts")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/torture"), help="folder, emptied before")
    parser.add_argument("--results", type=Path, default=HERE / "results.json", help="file for the results")
    options = parser.parse_args()
    os.nice(10)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if options.warm:
        import lightning  # noqa: F401

        import opir_lightning.report
        import opir_lightning.train
        import opir_lightning.training.callbacks  # noqa: F401
    began = time.monotonic()
    meta = provenance()
    output = options.output.absolute()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    whole, cut, log = output / "whole", output / "cut", output / "cut.log"
    first, seconds = run_whole(whole, options.steps, warm=options.warm)
    print(f"uninterrupted: {seconds:.0f} s, the first step after {first:.0f} s", flush=True)
    struck: list[dict[str, Any]] = []
    starts = 0
    for moment in moments(options.kills, options.terms, options.steps, first, options.seed):
        log_begins = log.stat().st_size if log.exists() else 0
        process = start(cut, options.steps, warm=options.warm and moment["aim"] != "start")
        starts += 1
        if not wait_for(moment, process, cut, began + options.limit):
            print("no more signals: the training has ended, or the time is over", flush=True)
            break
        struck.append(strike(moment, process, cut, log_begins))
        print(json.dumps(struck[-1]), flush=True)
    while process.poll() is None or not (cut / "results.json").is_file():
        if process.wait() not in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise SystemExit(f"The training failed, see {cut}.log")
        if not (cut / "results.json").is_file():
            process = start(cut, options.steps, warm=options.warm)
            starts += 1
    found = compare(whole, cut)
    record = {
        "settings": [*SETTINGS, f"trainer.max_steps={options.steps}"],
        "seed": options.seed,
        "signals": dict(Counter(entry["signal"] for entry in struck)),
        "aims": dict(Counter(f"{entry['aim']} {entry['signal']}" for entry in struck)),
        "starts": starts,
        "warm": options.warm,
        "died_while_writing": sum(entry["left_unfinished"] > 0 for entry in struck),
        "orphans": sum(entry["orphans"] for entry in struck),
        "damaged_under_their_name": sum(len(entry["damaged"]) for entry in struck),
        "tracebacks": sum(entry["tracebacks"] for entry in struck),
        "unexplained_ends": sum(entry["status"] == 143 and not entry["said_how_to_go_on"] for entry in struck),
        "seconds_to_end": max((entry["seconds_to_end"] for entry in struck), default=0),
        **found,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "struck": struck,
        "meta": meta,
    }
    write_atomically(options.results, (json.dumps(record, indent=1) + "\n").encode())
    bad = [name for name, value in found.items() if name != "steps" and value]
    bad += [name for name in ("orphans", "damaged_under_their_name", "tracebacks", "unexplained_ends") if record[name]]
    print("not as it should be: " + ", ".join(bad) if bad else "the same, bit for bit", flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
