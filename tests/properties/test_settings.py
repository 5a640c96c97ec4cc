"""Settings: what is known composes, what is mistyped is refused, and a fingerprint stands for what is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.errors import UserError
from opir_lightning.models.opir import OPIR
from opir_lightning.models.settings import read_settings
from opir_lightning.resume import fingerprint

KNOWN = {
    "model": st.sampled_from(["opir_tiny", "opir_small", "opir_base"]),
    "model.kernel_size": st.sampled_from([3, 5, 7]),
    "model.stages": st.sampled_from([1, 2]),
    "model.dilations": st.sampled_from(["[1]", "[1,2]", "[1,2,3,4]"]),
    "model.uncertainty": st.sampled_from(["learned", "tap_mean", "off"]),
    "model.task_parameters": st.sampled_from(["after", "before", "off"]),
    "data.crop": st.sampled_from([64, 96]),
    "+data.train.rain.weight": st.floats(0.1, 9).map(lambda value: round(value, 2)),
    "degradations.rain.severity": st.sampled_from(["[0,1]", "[0.2,0.8]"]),
    "loss.charbonnier": st.sampled_from([0, 0.5]),
    "seed": st.integers(0, 10**6),
    "tasks": st.sampled_from(["[none,noise]", "[none,rain,haze]"]),
}
# Nodes whose classes are imported in no time.
PARTS = ("model", "degradations", "loss", "optimizer")
register_schemas()


def composed(*overrides: str) -> Any:
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return compose("train", ["experiment=five_task", "run_dir=out", *overrides])


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    container = OmegaConf.to_container(composed(), resolve=True)
    return {name: container[name] for name in PARTS}


@settings(max_examples=max(3, settings().max_examples // 4))
@given(chosen=st.fixed_dictionaries({}, optional=KNOWN))
def test_any_known_settings_compose_together(chosen):
    config = OmegaConf.to_container(composed(*(f"{name}={value}" for name, value in chosen.items())), resolve=True)
    for name, value in chosen.items():
        if name != "model":
            node = config
            for part in name.lstrip("+").split("."):
                node = node[part]
            assert node == (OmegaConf.create(value) if isinstance(value, str) and value[0] == "[" else value)
    model = {key: value for key, value in config["model"].items() if not key.startswith("_")}
    assert OPIR.from_settings(read_settings(OPIR.__init__, model)).settings["tasks"] == config["tasks"]


def constructed(node: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is a class to build: the paths of its arguments."""
    found = []
    if isinstance(node, dict):
        for key, value in node.items():
            if "_target_" in node and not key.startswith("_"):
                found.append((*where, key))
            found += constructed(value, (*where, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            found += constructed(value, (*where, index))
    return found


@given(data=st.data())
def test_any_mistyped_name_is_refused_and_named(plain, data):
    config = copy.deepcopy(plain)
    *where, name = data.draw(st.sampled_from(constructed(config)))
    place = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from("abcxyz_"))
    wrong = data.draw(
        st.sampled_from([name[:place] + name[place + 1 :], name[:place] + letter + name[place:], name + letter])
    )
    node = config
    for part in where:
        node = node[part]
    assume(wrong and wrong not in node and not (wrong.startswith("_") and wrong.endswith("_")))
    node[wrong] = node.pop(name)
    with pytest.raises(UserError, match=f"'?{wrong}'? is not a setting") as caught:
        check_keys(OmegaConf.create(config))
    assert "\n" not in str(caught.value)


def test_what_is_spelled_rightly_passes(plain):
    assert check_keys(OmegaConf.create(plain)) == plain


folders = st.text('ab1/_-. é"\\', min_size=1, max_size=12).filter(lambda text: text.strip("./ "))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab1/. {}", max_size=8)
names = st.text("ab1_", min_size=1, max_size=4)
tables = st.dictionaries(
    names,
    st.recursive(
        leaves, lambda some: st.lists(some, max_size=3) | st.dictionaries(names, some, max_size=3), max_leaves=8
    ),
    min_size=1,
    max_size=5,
)


@given(table=tables, first=folders, second=folders)
def test_a_fingerprint_does_not_know_the_folder(table, first, second):
    def run(folder: str) -> dict[str, Any]:
        return {**table, "log_dir": f"{folder}/log", "own": folder, "run_dir": folder, "resume": "auto", "tags": ["x"]}

    assume(all(text not in str(table) for text in (first, second)))
    assert fingerprint(run(first)) == fingerprint(run(second))


def test_a_folder_called_like_a_value_hides_no_setting():
    assert fingerprint({"seed": 1, "run_dir": "1"}) != fingerprint({"seed": 11, "run_dir": "1"})
    assert fingerprint({"a": "noise", "run_dir": "no"}) != fingerprint({"a": "ise", "run_dir": "no"})


@given(table=tables, folder=folders, data=st.data())
def test_a_fingerprint_tells_any_two_settings_apart(table, folder, data):
    name = data.draw(st.sampled_from(sorted(table)))
    other = {**table, name: data.draw(leaves | st.integers(-3, 30))}
    same = repr(other[name]) == repr(table[name])
    numbers = isinstance(other[name], int | float) and isinstance(table[name], int | float)
    assume(not same and not (numbers and float(other[name]) == float(table[name])))
    assume(all(folder not in str(value) for value in (table, other)) or not isinstance(other[name], str))
    assert fingerprint({**table, "run_dir": folder}) != fingerprint({**other, "run_dir": folder})
