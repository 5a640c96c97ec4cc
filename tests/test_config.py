"""A mistyped key is an error wherever it stands; every experiment composes and can be built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from opir_lightning.config import check_keys, config_dir, register_schemas, setting
from opir_lightning.errors import UserError

EXPERIMENTS = sorted(path.stem for path in (Path(config_dir()) / "experiment").glob("*.yaml"))
register_schemas()


def composed(*overrides: str, extra: Path | None = None):
    search = [f"hydra.searchpath=[file://{extra}]"] if extra else []
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return compose("train", ["run_dir=.", *search, *overrides])


def test_runs_that_are_watched_otherwise_have_the_same_group(monkeypatch):
    given = ["seed=3", "data.workers=0", "data.stalled_after=60", "+data.stop_stalled_after=9", "callbacks.panels=null"]
    overrides = SimpleNamespace(task=["experiment=rain", *given, "model.kernel_size=5", "callbacks.ema.decay=0.9"])
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(overrides=overrides))
    assert setting("rain") == "rain callbacks.ema.decay=0.9 model.kernel_size=5"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_builds_its_parts(name):
    plain = check_keys(composed(f"experiment={name}"))
    assert plain["name"] == name
    assert plain["model"]["tasks"] == plain["data"]["tasks"] == plain["tasks"]
    net = instantiate(plain["model"], _convert_="all")
    data = instantiate(plain["data"], _convert_="all")
    assert net.code_crop <= data.crop
    assert {source.task for source in data.train.values()} >= set(plain["tasks"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.widht=3", "Did you mean 'width'"),
        ("data.bach_size=3", "Did you mean 'batch_size'"),
        ("degradations.noise.sigm_255=3", "Did you mean 'sigma_255'"),
        ("trainer.max_stesp=3", "Did you mean 'max_steps'"),
        ("loss.charbonier=1", "Did you mean 'charbonnier'"),
        ("callbacks.ema.deacy=1", "Did you mean 'decay'"),
        ("model._target_=opir_lightning.models.OPRI", "no such class"),
    ],
)
def test_a_mistyped_key_below_the_root_is_named_with_a_suggestion(override, said):
    added = override if "_target_" in override else f"+{override}"
    with pytest.raises(UserError, match=said):
        check_keys(composed(added))


@pytest.mark.parametrize("override", ["sede=3", "model.widht=3", "data.bach_size=3", "trainer.max_stesp=3"])
def test_a_mistyped_key_on_the_command_line_is_refused(override):
    with pytest.raises(HydraException, match=override.removesuffix("=3")):
        composed(override)


@pytest.mark.parametrize(
    ("text", "said"),
    [("sede: 3", "sede"), ("model:\n  widht: 3", "widht"), ("trainer:\n  max_stesp: 3", "max_stesp")],
)
def test_a_mistyped_key_inside_an_experiment_file_is_refused(tmp_path, text, said):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\nname: mine\ntasks: [none, noise]\n{text}\n"
    )
    with pytest.raises((UserError, HydraException), match=said):
        check_keys(composed("experiment=mine", extra=tmp_path))


def test_an_experiment_file_that_forgets_its_package_line_is_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("name: mine\ntasks: [none, noise]\n")
    with pytest.raises((UserError, HydraException)):
        check_keys(composed("experiment=mine", extra=tmp_path))


def test_operator_size_is_one_override():
    net = instantiate(check_keys(composed("model=opir_tiny", "model.kernel_size=7"))["model"], _convert_="all")
    assert net.task_parameters[0].taps == 3 * 49


def test_the_demo_runs_in_its_fixed_folder_and_the_others_in_one_with_the_time():
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        folders = {
            name: OmegaConf.to_container(
                compose("train", [f"experiment={name}"], return_hydra_config=True), resolve=False
            )["hydra"]["run"]["dir"]
            for name in ("demo", "rain")
        }
    assert folders["demo"] == "outputs/demo"
    assert folders["rain"].startswith("outputs/${name}/${now:")
