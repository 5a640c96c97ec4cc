"""Does a loader's process grow without end while it lives?

``python experiments/memory/loader.py data.root=DIR [SETTING=VALUE...]``

Draws batches in one long epoch as a training would, without a network, and prints what each worker holds of its own
(Linux: ``Private_Dirty``, and ``Pss`` without mapped files) as the samples go by.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tqdm import tqdm

from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.provenance import provenance

HERE = Path(__file__).resolve().parent
SETTINGS = ["experiment=five_task", "run_dir=.", "data.crop=64", "data.batch_size=8", "data.workers=2"]
EVERY = 4_000  # samples between two looks


def held(pid: int) -> tuple[float, float]:
    """MiB of a process: written to by it alone, and its share of all that is in no file."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: float(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
    return round(kib["Private_Dirty"] / 1024, 1), round((kib["Pss_Anon"] + kib["Pss_Shmem"]) / 1024, 1)


def main() -> None:
    torch.set_num_threads(1)
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        overrides = [*SETTINGS, "data.jitter=0.4", "data.val_pictures=2", "data.epoch_samples=200000", *sys.argv[1:]]
        config = compose("train", overrides)
    data = instantiate(check_keys(config)["data"], _convert_="all")
    data.prepare_data()
    data.setup("fit")
    rows = []
    loader = data.train_dataloader()
    for index, _ in enumerate(tqdm(loader, unit="batch", disable=None)):
        samples = (index + 1) * data.batch_size
        if samples % EVERY == 0 or samples == 400:
            workers = [held(child.pid) for child in psutil.Process().children()]
            rows.append(
                {"samples": samples, "private_mib": [w[0] for w in workers], "own_mib": [w[1] for w in workers]}
            )
            tqdm.write(f"{samples:7} {rows[-1]['private_mib']} {rows[-1]['own_mib']}")
    (HERE / "loader.json").write_text(json.dumps({"meta": provenance(), "looks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
