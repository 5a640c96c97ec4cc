"""Three real trainings of four steps on small pictures, as a sweep leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from opir_lightning.config import config_dir, register_schemas
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.train import train

TINY = [
    *("experiment=demo", "tasks=[none,noise,haze]", "trainer.max_steps=4", "trainer.max_time=null"),
    *("trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "callbacks.progress=null"),
    *("callbacks.panels=null", "callbacks.best=null", "data.crop=32", "data.batch_size=2", "data.epoch_samples=4"),
    *("data.workers=0", "data.packs=memory", "data.val_centre=null", "model.width=8", "model.features=8"),
    *("model.middle_blocks=1", "schedule.warmup=0", "optimizer.lr=0.02", "callbacks.ema.decay=0"),
]
JOBS = [("3", "0"), ("3", "1"), ("5", "0")]  # kernel size and seed


def pictures(folder: Path) -> Path:
    """A data root of few and small pictures: three of them for validation."""
    for name, photographs, side in (("BSD400", "train", 48), ("BSD-val-rest", "heldout", 64)):
        (folder / name).mkdir(parents=True)
        for path in sorted((EMBEDDED / photographs).glob("*.jpg"))[:3]:
            with Image.open(path) as photograph:
                photograph.crop((100, 60, 100 + side, 60 + side)).save(folder / name / f"{path.stem}.png")
    return folder


def run(folder: Path, root: Path, *overrides: str) -> Path:
    """Train in ``folder``, with the configuration beside it that the command leaves there."""
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("train", [*TINY, f"data.root={root}", *overrides])
    (folder / "config").mkdir(parents=True)
    OmegaConf.save(config, folder / "config" / "config.yaml")  # with its references, and run_dir one of Hydra's own
    config.run_dir = str(folder)
    train(config)
    return folder


@pytest.fixture
def train_run():
    return run


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    """The folder of the sweep; not to be changed."""
    root = pictures(tmp_path_factory.mktemp("data") / "sets")
    folder = tmp_path_factory.mktemp("sweep")
    for number, (size, seed) in enumerate(JOBS):
        run(folder / str(number), root, f"model.kernel_size={size}", f"seed={seed}")
    return folder
