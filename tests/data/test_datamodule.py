"""Finding sources, and what bad folders get."""

from __future__ import annotations

import shutil

import pytest
import torch

from opir_lightning.data.datamodule import RestorationData
from opir_lightning.data.sources import EMBEDDED, CleanFolder, PairedFolder
from opir_lightning.degradations import Noise
from opir_lightning.errors import UserError

NOISE = {"noise": CleanFolder(task="noise", degradation=Noise(), folders=["photos", "more"])}


def data(root=None, train=NOISE, **settings):
    settings = {"tasks": ["none", "noise"], "train": train, "val": NOISE, "crop": 32, **settings}
    return RestorationData(root=None if root is None else str(root), **settings)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("wine.jpg", "free.jpg"):
        shutil.copy(EMBEDDED / "train" / name, tmp_path / "photos" / name)
    return tmp_path


def test_embedded_photographs_are_split_and_attributed():
    names = {split: {p.name for p in (EMBEDDED / split).glob("*.jpg")} for split in ("train", "heldout")}
    assert not names["train"] & names["heldout"]
    assert 12 <= len(names["train"] | names["heldout"]) <= 16
    attribution = (EMBEDDED / "ATTRIBUTION.md").read_text()
    for split, files in names.items():
        for name in files:
            row = next(line for line in attribution.splitlines() if f"{split}/{name}" in line)
            assert "creativecommons.org" in row
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*.jpg")) <= 3 * 2**20


def test_without_a_root_training_and_validation_never_share_a_photograph():
    embedded = data()
    embedded.prepare_sets()
    train = {item.clean for _, items in embedded.mixture.sources for item in items}
    val = {item.clean for val_set in embedded.val_sets for item in val_set.items}
    assert train
    assert val
    assert not train & val


def test_sets_below_the_root_are_found_and_absent_ones_left_out(root):
    both = {**NOISE, "pairs": PairedFolder(task="noise", degraded="a", clean="b")}
    found = data(root, both)
    found.prepare_sets()
    assert found.found == {"noise": 2}


def test_a_root_without_validation_pictures_is_validated_on_the_embedded_ones(root):
    bare = data(root, val={"noise": CleanFolder(task="noise", degradation=Noise(), folders=["nowhere"])})
    bare.prepare_sets()
    (held_out,) = bare.val_sets
    assert {item.clean.parent for item in held_out.items} == {EMBEDDED / "heldout"}
    (own,) = (found := data(root)).prepare_sets() or found.val_sets
    assert {item.clean.parent for item in own.items} == {root / "photos"}


def test_sources_of_other_tasks_are_left_out(root):
    with pytest.raises(UserError, match="No training pictures"):
        data(root, tasks=["none", "rain"]).prepare_sets()


def test_a_missing_or_empty_root_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        data(tmp_path / "nowhere").prepare_sets()
    with pytest.raises(UserError, match="more, photos"):
        data(tmp_path).prepare_sets()


def test_a_broken_picture_is_named_and_stops_the_run_only_past_the_share(root):
    whole = (root / "photos" / "wine.jpg").read_bytes()
    (root / "photos" / "broken.png").write_bytes(whole[:300])
    with pytest.raises(UserError, match=r"broken\.png.*1 of 3"):
        data(root).prepare_sets()
    tolerant = data(root, broken_share=0.5)
    tolerant.prepare_sets()
    assert {item.name for item in tolerant.mixture.sources[0][1]} == {"wine", "free"}


def test_a_folder_of_pairs_without_its_partner_folder_is_named(root):
    pairs = {"mine": PairedFolder(task="noise", degraded="photos", clean="absent")}
    with pytest.raises(UserError, match="absent"):
        data(root, pairs).prepare_sets()


def test_a_share_of_the_training_goes_through_files_and_neither_pairs_nor_the_validation(root):
    shutil.copytree(root / "photos", root / "noisy")
    both = {**NOISE, "pairs": PairedFolder(task="noise", degraded="noisy", clean="photos")}
    plain, filed = (data(root, both, jpeg_share=share, jpeg=[40, 40]) for share in (0.0, 1.0))
    for each in (plain, filed):
        each.prepare_sets()
        each.mixture.pending = False
    noise, pairs = 0, 0
    for number in range(20):
        one, other = plain.mixture[number], filed.mixture[number]
        assert torch.equal(one.clean, other.clean)
        from_files = plain.source_of(number) == "pairs"
        assert torch.equal(one.degraded, other.degraded) == from_files
        noise, pairs = noise + (not from_files), pairs + from_files
    assert noise
    assert pairs
    assert torch.equal(plain.val_sets[0][0].degraded, filed.val_sets[0][0].degraded)


def test_an_epoch_without_a_batch_and_shares_that_are_none_are_refused(root):
    few = data(root, epoch_samples=7, batch_size=8)
    few.prepare_sets()
    with pytest.raises(UserError, match=r"epoch_samples is 7, and a batch over all devices has 8 samples: no step"):
        few.train_dataloader()
    enough = data(root, epoch_samples=8, batch_size=8, workers=0)
    enough.prepare_sets()
    assert len(enough.train_dataloader()) == 1
    for name in ("crop", "batch_size", "epoch_samples"):
        with pytest.raises(UserError, match=rf"data\.{name} is 0; it must be 1 or more"):
            data(root, **{name: 0})
    for name, number, least in (("val_pictures", -1, 1), ("val_centre", 0, 16)):
        with pytest.raises(UserError, match=rf"data\.{name} is {number}; it must be {least} or more, or null"):
            data(root, **{name: number})
    with pytest.raises(UserError, match=r"data\.crop is 4097; it must be 4096 or less"):
        data(root, crop=4097)
    with pytest.raises(UserError, match=r"data\.workers is -1; it must be 0 or more, or null"):
        data(root, workers=-1)
    wrong = {"label_share": 30, "heard_alone": -0.1, "jitter": 1.5, "broken_share": float("nan")}
    wrong |= {"grey_share": 2, "resize_share": -1, "jpeg_share": 1.2}
    for name, share in wrong.items():
        with pytest.raises(UserError, match=rf"data\.{name} is {share:g}; it is a share and must be in \[0, 1\]"):
            data(root, **{name: share})


@pytest.mark.parametrize("role", ["train", "val"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_of_a_mixture_is_refused(role, weight):
    source = CleanFolder(task="noise", degradation=Noise(), folders=[], weight=weight)
    with pytest.raises(UserError, match=rf"data\.{role}\.mine\.weight is {weight:g}; it must be 0 or more"):
        data(**{role: {"mine": source}})


@pytest.mark.parametrize(
    ("setting", "wrong"), [("val_severity", (1.0, 0.3)), ("resize", (3.0, 0.6)), ("jpeg", (98.0, 70.0))]
)
def test_a_range_whose_ends_are_in_the_wrong_order_is_refused(setting, wrong):
    with pytest.raises(UserError, match=rf"data\.{setting} is .*its first end must not be more than its second"):
        data(**{setting: wrong})


def test_a_source_of_a_task_that_nobody_knows_is_left_out_and_that_is_said(caplog):
    mistyped = CleanFolder(task="nois", degradation=Noise(), folders=[])
    other = CleanFolder(task="rain", degradation=Noise(), folders=[])
    data(train={**NOISE, "typo": mistyped, "other": other}).prepare_sets()
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert said == "typo is of the task 'nois', which is none of the run's: left out."
