"""Every recipe in conf/experiment/ trains, and every ablation has its variants; those train, too, in a slow test."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.data.store import ImageStore
from opir_lightning.train import assemble

register_schemas()
FOLDER = Path(config_dir()) / "experiment"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("_"))
EXPERIMENTS = [str(path.relative_to(FOLDER).with_suffix("")) for path in FILES]
ABLATIONS = [name for name in EXPERIMENTS if name.startswith("ablation/")]
SMALL = [
    "model=opir_tiny",
    "model.width=8",
    "model.middle_blocks=1",
    "model.features=8",
    "model.code_crop=32",
    "data.crop=32",
    "data.batch_size=2",
    "data.epoch_samples=4",
    "data.workers=0",
    "data.val_pictures=1",
    "data.val_centre=32",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "callbacks.progress=null",
    "callbacks.panels=null",
    "callbacks.operators=null",
    "callbacks.confusion=null",
    "callbacks.calibration=null",
    "callbacks.best=null",
    "callbacks.last=null",
]


def configuration(*overrides: str, hydra: bool = False):
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=hydra)


@pytest.fixture(scope="module")
def decoded():
    """The embedded photographs, decoded once for all trainings."""
    found = {}
    yield found
    found.clear()


def two_steps(tmp_path: Path, decoded: dict, monkeypatch, *overrides: str) -> None:
    monkeypatch.setattr("opir_lightning.data.datamodule.ImageStore", lambda: decoded.setdefault("store", ImageStore()))
    plain = check_keys(configuration(*overrides, *SMALL, f"run_dir={tmp_path}"))
    module, data, trainer, _ = assemble(plain)
    before = torch.cat([p.detach().flatten().clone() for p in module.net.parameters()])
    trainer.fit(module, data, weights_only=True)
    after = torch.cat([p.detach().flatten() for p in module.net.parameters()])
    assert trainer.global_step == 2
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    assert math.isfinite(trainer.callback_metrics["val/psnr"])


@pytest.mark.parametrize("name", sorted({*EXPERIMENTS} - {*ABLATIONS}))
def test_every_experiment_composes_is_built_and_takes_two_steps(name, tmp_path, decoded, monkeypatch):
    two_steps(tmp_path, decoded, monkeypatch, f"experiment={name}")


@cache
def variants(name: str) -> list[list[str]]:
    """The jobs of an ablation as Hydra makes them of its file: lists of overrides."""
    params = OmegaConf.select(configuration(f"experiment={name}", hydra=True), "hydra.sweeper.params")
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return jobs


def one_change_each(jobs: list[list[str]]) -> list[list[str]]:
    """The first job, and for each of its settings the first one that differs from it in that alone."""
    found: dict[int, list[str]] = {}
    for job in jobs[1:]:
        differing = [place for place, (a, b) in enumerate(zip(jobs[0], job, strict=True)) if a != b]
        if len(differing) == 1:
            found.setdefault(differing[0], job)
    return [jobs[0], *found.values()]


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_variants_of_an_ablation_tell_their_names_and_are_built(name, tmp_path):
    jobs = variants(name)
    assert len(jobs) > 1
    small = [*SMALL, f"run_dir={tmp_path}"]
    configs = [configuration(f"experiment={name}", *small, *job) for job in one_change_each(jobs)]
    assert len(configs) > 1
    assert len({(config.name, config.seed) for config in configs}) == len(configs)
    assert {config.group for config in configs} == {name}
    assert {config.resume for config in configs} == {"auto"}
    for config in configs:
        assemble(check_keys(config))


@pytest.mark.parametrize("group", ["loss", "recipe"])
def test_an_ablation_of_files_has_every_variant_that_there_is(group):
    names = {path.stem: OmegaConf.load(path).name for path in (FOLDER.parent / "variant" / group).glob("*.yaml")}
    jobs = {job[0].removeprefix(f"variant/{group}=") for job in variants(f"ablation/{group}")}
    assert names == {name: f"{group}-{name}" for name in jobs}
    assert len(names) > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_variant_of_an_ablation_takes_two_steps(name, tmp_path, decoded, monkeypatch):
    for number, job in enumerate(variants(name)):
        two_steps(tmp_path / str(number), decoded, monkeypatch, f"experiment={name}", *job)
