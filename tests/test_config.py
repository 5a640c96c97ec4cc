"""A mistyped key is an error wherever it stands; every experiment composes and can be built."""

from __future__ import annotations

import inspect
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from opir_lightning.config import build, check_keys, config_dir, register_schemas, setting
from opir_lightning.errors import UserError

EXPERIMENTS = sorted(path.stem for path in (Path(config_dir()) / "experiment").glob("*.yaml"))
register_schemas()


def composed(*overrides: str, extra: Path | None = None):
    search = [f"hydra.searchpath=[file://{extra}]"] if extra else []
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return compose("train", ["run_dir=.", *search, *overrides])


@cache
def _default():
    return composed()


def changed(*overrides: str):
    """As `composed`, of the default experiment, in a fraction of the time."""
    config = deepcopy(_default())
    OmegaConf.set_struct(config, False)
    config.merge_with_dotlist([override.lstrip("+") for override in overrides])
    return config


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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+data.train.rian.weight=2", r"'data\.train\.rian' has no _target_.* Did you mean 'data\.train\.rain'\?"),
        ("+data.val.hase.weight=2", r"Did you mean 'data\.val\.haze'"),
        ("+degradations.rian.veil=0", r"Did you mean 'degradations\.rain'"),
        ("+callbacks.emaa.decay=0.9", r"Did you mean 'callbacks\.ema'"),
        ("data.train.rain=null", r"'data\.train\.rain' is null; it must be a node with a _target_, or be left out"),
        ("+optimizer._partail_=true", r"'optimizer\._partail_' is not a setting of torch\.optim\.AdamW"),
    ],
)
def test_a_mistyped_node_is_named_before_anything_is_built(override, said):
    with pytest.raises(UserError, match=said):
        check_keys(changed(override))


def test_a_source_of_ones_own_and_callbacks_that_are_left_out_are_fine():
    own = "+data.train.mine={_target_: opir_lightning.data.PairedFolder, task: rain, degraded: a, clean: b}"
    plain = check_keys(changed(own, "callbacks.ema=null", "callbacks.panels={}"))
    assert instantiate(plain["data"], _convert_="all").train["mine"].degraded == "a"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss.rmse=abc", "loss.rmse is 'abc'; it must be a number."),
        ("loss.rmse=.nan", "loss.rmse is nan; it must be a number."),
        ("loss.task_weights={noise: x}", "loss.task_weights.noise is 'x'; it must be a number."),
        ("optimizer.lr=abc", "optimizer.lr is 'abc'; it must be a number."),
        ("optimizer.betas=[0.9]", "optimizer.betas is [0.9]; it must be a list of 2 numbers."),
        ("optimizer._partial_=1", "optimizer._partial_ is 1; it must be true or false."),
        ("data.workers=x", "data.workers is 'x'; it must be a whole number or null."),
        ("data.crop=64.5", "data.crop is 64.5; it must be a whole number."),
        ("data.batch_size=true", "data.batch_size is true; it must be a whole number."),
        ("data.root=5", "data.root is 5; it must be text or null."),
        ("data.degrade_on=gpu", "data.degrade_on is 'gpu'; it must be auto, workers or device."),
        ("data.resize=big", "data.resize is 'big'; it must be a number or a list of numbers."),
        ("data.curriculum=fast", "data.curriculum is 'fast'; it must be a node with a _target_ or null."),
        (
            "data.train.undamaged.folders=BSD400",
            "undamaged.folders is 'BSD400'; it must be a list of texts.",
        ),
        ("data.train.LOL-v1-train.augmentation=d8", "augmentation is 'd8'; it must be d4, flip or none."),
        ("degradations.rain.veil=[0,x]", "degradations.rain.veil[1] is 'x'; it must be a number."),
        ("degradations.rain.layers=5", "degradations.rain.layers is 5; it must be a list of texts or text."),
        ("model.dilations=[1,x]", "model.dilations[1] is 'x'; it must be a whole number."),
        ("model.per_colour=1", "model.per_colour is 1; it must be true or false."),
        ("trainer.max_steps=2.5", "trainer.max_steps is 2.5; it must be a whole number."),
        ("trainer.precision=bf17", "trainer.precision is 'bf17'; it must be 64, 32, 16, "),
        (
            "trainer.max_time=60",
            "max_time is 60; it must be text, a mapping of names to whole numbers or null.",
        ),
        (
            "callbacks.operators.pixels=[[0.5]]",
            "operators.pixels[0] is [0.5]; it must be a list of 2 numbers.",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_what_is_needed(override, said):
    with pytest.raises(UserError) as refused:
        check_keys(changed(override))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=1",
        "optimizer.fused=null",
        "trainer.max_steps=1e5",
        "trainer.max_time={minutes: 5}",
        "trainer.max_time={minutes: 0.5}",
        f"optimizer.lr={10**400}",
        "trainer.devices=[0]",
        "trainer.precision=32",
        "+trainer.profiler=simple",
        "+trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler}",
        "data.resize=1",
        "data.val_pictures=null",
        "data.train.undamaged.folders=[]",
        "degradations.blur.kernels=kernels",
        "degradations.rain.layers=[layers]",
        "loss.task_weights=null",
    ],
)
def test_what_a_constructor_takes_is_left_alone(override):
    check_keys(changed(override))


def test_a_constructor_that_says_nothing_is_named():
    with pytest.raises(UserError, match="'mine' cannot be built with its settings: ValueError"):
        build({"_target_": "test_config.refuse"}, "mine")


def refuse() -> None:
    raise ValueError


def test_the_annotations_of_everything_in_conf_can_be_read():
    """One that only type checkers can read would leave the settings of that class unchecked."""
    texts = " ".join(path.read_text() for path in Path(config_dir()).rglob("*.yaml"))
    own = set(re.findall(r"_target_: (?:&\w+ )?(opir_lightning(?:\.\w+)+)", texts))
    classes = [found for found in map(get_object, own) if inspect.isclass(found)]
    assert len(classes) > 15
    for found in classes:
        get_type_hints(found.__init__)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "degradations.rain.severity=[0.9,0.1]",
            r"\.rain\.degradation: severity is \[0\.9, 0\.1\]; its first end",
        ),
        ("data.val_severity=[1,0.3]", r"data\.val_severity is \[1, 0\.3\]; its first end"),
        ("data.resize=[3,0.6]", r"^data\.resize is \[3, 0\.6\]; its first end must not be more than its second"),
        ("data.jpeg=[98,70]", r"^data\.jpeg is \[98, 70\]; its first end"),
        ("data.train.rain.weight=-1", r"^data\.train\.rain\.weight is -1; it must be 0 or more, where 0 leaves"),
        ("data.train.OTS.match=x", r"^data\.train\.OTS: `match` is 'x'"),
    ],
)
def test_what_a_constructor_refuses_is_said_with_its_place(override, said):
    node = check_keys(changed(override))["data"]
    with pytest.raises(UserError, match=said):
        build(node, "data")


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
