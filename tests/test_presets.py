"""Presets: in a tree of each published layout, exactly the right pairs with the right tasks are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.data.inspection import list_sets
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.evaluate import find_sets

PHOTOGRAPH = min((EMBEDDED / "heldout").glob("*.jpg"))
PAIRS = {"RainTrainL": "rain", "OTS": "haze", "GoPro-train": "blur", "LOL-v1-train": "low_light"}
TESTS = {"Rain100L": "rain", "SOTS-outdoor": "haze", "GoPro": "blur", "LOL": "low_light"}
register_schemas()

# By preset: the files of one tree, then what each set must hold: "degraded > clean", or a clean file alone.
RESTORATION = {
    "train": {
        "BSD400": ["BSD400/2092.jpg"],
        "WED": ["WED/00001.bmp"],
        "DIV2K/DIV2K_train_HR": ["DIV2K/DIV2K_train_HR/0001.png"],
        "Flickr2K/Flickr2K_HR": ["Flickr2K/Flickr2K_HR/000001.png"],
        "Rain13K-train": ["Rain13K-train/input/1.jpg > Rain13K-train/target/1.jpg"],
        "OTS": ["OTS/hazy/0025_0.8_0.1.jpg > OTS/gt/0025.jpg", "OTS/hazy/0025_1_0.2.jpg > OTS/gt/0025.jpg"],
        "ITS": ["ITS/hazy/1_1_0.9.png > ITS/gt/1.png"],
        "GoPro-train": [
            "GoPro/train/GOPR0372_07_00/blur/000047.png > GoPro/train/GOPR0372_07_00/sharp/000047.png",
            "GoPro/train/GOPR0372_07_01/blur/000047.png > GoPro/train/GOPR0372_07_01/sharp/000047.png",
        ],
        "LOL-v1-train": ["LOL-v1/train/low/2.png > LOL-v1/train/high/2.png"],
    },
    "test": {
        "CBSD68": ["CBSD68/3096.png"],
        "Kodak24": ["Kodak24/kodim01.png"],
        "Urban100": ["Urban100/img_001.png"],
        "McMaster": ["McMaster/1.png"],
        "Set5": ["Set5/baby.png"],
        "Rain100L": ["Rain100L/input/1.png > Rain100L/target/1.png"],
        "Rain100H": ["Rain100H/input/1.png > Rain100H/target/1.png"],
        "SOTS-outdoor": ["SOTS-outdoor/hazy/0001_0.8_0.2.jpg > SOTS-outdoor/gt/0001.png"],
        "SOTS-indoor": ["SOTS-indoor/hazy/1400_1.png > SOTS-indoor/gt/1400.png"],
        "O-HAZE": ["O-HAZE/hazy/35_outdoor_hazy.jpg > O-HAZE/gt/35_outdoor_GT.jpg"],
        "GoPro": [
            "GoPro/test/GOPR0384_11_00/blur/000001.png > GoPro/test/GOPR0384_11_00/sharp/000001.png",
            "GoPro/test/blur/Istanbul1.png > GoPro/test/sharp/Istanbul1.png",
        ],
        "Levin": ["Levin/blur/im1_kernel3.png > Levin/sharp/im1.png"],
        "LOL": ["LOL-v1/eval15/low/1.png > LOL-v1/eval15/high/1.png"],
        "PolyU": ["PolyU/noisy/chair_5.JPG > PolyU/clean/chair_5.JPG"],
    },
}
PROMPTIR = {
    "train": {
        "Train/Denoise": ["Train/Denoise/00001.bmp", "Train/Denoise/5096.jpg"],
        "RainTrainL": ["Train/Derain/rainy/rain-12.png > Train/Derain/gt/norain-12.png"],
        "OTS": [
            "Train/Dehaze/synthetic/part1/0025_0.8_0.1.jpg > Train/Dehaze/original/0025.jpg",
            "Train/Dehaze/synthetic/part4/6823_0.8_0.1.jpg > Train/Dehaze/original/6823.jpg",
        ],
        "GoPro-train": ["Train/Deblur/blur/GOPR0372_07_00_000047.png > Train/Deblur/sharp/GOPR0372_07_00_000047.png"],
        "LOL-v1-train": ["Train/Enhance/low/2.png > Train/Enhance/gt/2.png"],
    },
    "test": {
        "test/denoise/bsd68": ["test/denoise/bsd68/3096.jpg"],
        "test/denoise/kodak24": ["test/denoise/kodak24/kodim01.png"],
        "test/denoise/urban100": ["test/denoise/urban100/img_001.png"],
        "Rain100L": ["test/derain/Rain100L/input/1.png > test/derain/Rain100L/target/1.png"],
        "SOTS-outdoor": ["test/dehaze/input/0001_0.8_0.2.jpg > test/dehaze/target/0001.png"],
        "GoPro": [
            "test/deblur/gopro/input/GOPR0384_11_00_000001.png > test/deblur/gopro/target/GOPR0384_11_00_000001.png"
        ],
        "LOL": ["test/enhance/lol/input/1.png > test/enhance/lol/target/1.png"],
    },
}
MOCE_IR = {
    "train": {
        "denoising/BSD400": ["denoising/BSD400/2092.jpg"],
        "denoising/WaterlooED": ["denoising/WaterlooED/00001.bmp"],
        "RainTrainL": ["deraining/RainTrainL/rainy/rain-1.png > deraining/RainTrainL/gt/norain-1.png"],
        "OTS": ["dehazing/RESIDE/part2/3068_0.8_0.1.jpg > dehazing/RESIDE/clear/3068.jpg"],
        "GoPro-crops": [
            "deblurring/GoPro/crop/train/input_crops/1-0.png > deblurring/GoPro/crop/train/target_crops/1-0.png"
        ],
        "LOL-v1-train": ["llie/LOLv1/Train/input/2.png > llie/LOLv1/Train/target/2.png"],
    },
    "test": {
        "denoising/cBSD68/original_png": ["denoising/cBSD68/original_png/0000.png"],
        "Rain100L": ["deraining/Rain100L/rainy/rain-001.png > deraining/Rain100L/gt/norain-001.png"],
        "SOTS-outdoor": ["dehazing/SOTS/outdoor/hazy/0019_0.8_0.16.jpg > dehazing/SOTS/outdoor/gt/0019.png"],
        "GoPro": ["deblurring/GoPro/test/input/1.png > deblurring/GoPro/test/target/1.png"],
        "LOL": ["llie/LOLv1/Test/input/1.png > llie/LOLv1/Test/target/1.png"],
    },
}
PRESETS = {
    ("restoration", "public"): (RESTORATION, {"Rain13K-train": "rain", "ITS": "haze", **PAIRS}),
    ("promptir", "promptir"): (PROMPTIR, PAIRS),
    ("moce_ir", "moce_ir"): (MOCE_IR, {"GoPro-crops": "blur", **PAIRS}),
}
TASKS = ["none", "noise", "rain", "haze", "blur", "low_light"]


def composed(name: str, *overrides: str):
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return check_keys(compose(name, ["run_dir=.", *overrides]))


def place(root: Path, tree: dict[str, dict[str, list[str]]]) -> None:
    for pairs in (pairs for sets in tree.values() for pairs in sets.values()):
        for name in (name for pair in pairs for name in pair.split(" > ")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PHOTOGRAPH, root / name)


def held(root: Path, role: str, nodes) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What each set holds and which tasks it is of, by name."""
    sources = {name: instantiate(node, _convert_="all") for name, node in nodes.items()}
    listings, _ = list_sets(role, sources, root)
    for listing in listings:
        assert not listing.faults
    short = {
        one.name: sorted(
            " > ".join(path.relative_to(root).as_posix() for path in (item.degraded, item.clean) if path is not None)
            for item in one.items
        )
        for one in listings
    }
    return short, {one.name: one.tasks for one in listings}


def test_there_is_a_test_for_every_preset():
    conf = Path(config_dir())
    for position, group in enumerate(("data", "benchmark")):
        names = {path.stem for path in (conf / group).glob("*.yaml") if not path.stem.startswith("_")}
        assert names == {preset[position] for preset in PRESETS}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset[0])
def test_a_preset_finds_its_published_layout(tmp_path, preset):
    tree, tasks = PRESETS[preset]
    place(tmp_path, tree)
    plain = composed("check_data", f"data={preset[0]}", f"benchmark={preset[1]}", f"data.root={tmp_path}")
    found, task_of = held(tmp_path, "train", plain["data"]["train"])
    assert found == {name: sorted(pairs) for name, pairs in tree["train"].items()}
    for name, pairs in tree["train"].items():
        assert task_of[name] == ([tasks[name]] if " > " in pairs[0] else TASKS)
    found, task_of = held(tmp_path, "test", plain["benchmark"]["sets"])
    assert found == {name: sorted(pairs) for name, pairs in tree["test"].items()}
    assert {name: task_of[name] for name in TESTS} == {name: [task] for name, task in TESTS.items()}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset[0])
def test_an_evaluation_finds_the_same_test_sets_by_the_same_names(tmp_path, preset):
    tree, _ = PRESETS[preset]
    place(tmp_path, tree)
    plain = composed("evaluate", f"benchmark={preset[1]}", f"data.root={tmp_path}", "checkpoint=none")
    sets = {one.name: len(one) for one in find_sets(plain, ("none", "noise"))}
    assert set(sets) == set(plain["benchmark"]["sets"])
    assert set(TESTS) <= set(sets)
    assert {name: sets[name] for name in TESTS} == {name: len(tree["test"][name]) for name in TESTS}
    assert sets["CBSD68-sigma15"] == sets["CBSD68-sigma25"] == sets["CBSD68-sigma50"] == 1


def test_one_override_names_the_clean_pictures_of_all_tasks():
    train = composed("train", "data.train.undamaged.folders=[mine]")["data"]["train"]
    assert {task: node["folders"] for task, node in train.items() if "folders" in node} == {
        name: ["mine"] for name in ("undamaged", "noise", "rain", "haze", "blur", "low_light")
    }
