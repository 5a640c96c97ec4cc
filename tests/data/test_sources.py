"""Pairs of files: which clean picture belongs to a degraded one, by names and folders; and what is read of a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opir_lightning.data.images import read_rgb, to_tensor
from opir_lightning.data.pair_pixels import evaluation_pair
from opir_lightning.data.sources import EMBEDDED, BenchmarkNoise, PairedFolder
from opir_lightning.data.store import ImageStore
from opir_lightning.errors import UserError

PHOTOGRAPH = min((EMBEDDED / "heldout").glob("*.jpg"))


def place(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTOGRAPH, root / name)


def pairs(root: Path, source: PairedFolder) -> list[tuple[str, str, str]]:
    """Name, degraded and clean file below the root."""
    return [
        (item.name, item.degraded.relative_to(root).as_posix(), item.clean.relative_to(root).as_posix())
        for item in source.items(root, embedded="train")
    ]


@pytest.mark.parametrize(
    ("degraded", "clean", "rule"),
    [
        ("7.png", "7.jpg", {}),
        ("0012_0.8_0.2.jpg", "0012.png", {"match": "([^_]+)_.*"}),
        ("35_outdoor_hazy.jpg", "35_outdoor_GT.jpg", {"match": "(.+)_hazy", "partner": r"\1_GT"}),
        ("rain-12.png", "norain-12.png", {"match": "rain-(.+)", "partner": r"norain-\1"}),
        ("low00001.png", "normal00001.png", {"match": r"low(\d+)", "partner": r"normal\g<1>"}),
        ("b_3.png", "3-b.png", {"match": "(?P<set>.+)_(.+)", "partner": r"\2-\g<set>"}),
    ],
)
def test_names_are_paired_by_match_and_partner(tmp_path, degraded, clean, rule):
    place(tmp_path, f"bad/{degraded}", f"good/{clean}", "good/other.png")
    source = PairedFolder("rain", "bad", "good", **rule)
    assert pairs(tmp_path, source) == [(Path(degraded).stem, f"bad/{degraded}", f"good/{clean}")]
    assert [path.name for path in source.pairing(tmp_path).lone_clean] == ["other.png"]


def test_pictures_with_the_same_stem_have_different_names(tmp_path):
    place(tmp_path, "A/0.jpg", "A/0.bmp", "A/1.jpg", "B/1.jpg", "B/2.jpg", "bad/7.jpg", "bad/7.bmp", "good/7.png")
    names = [item.name for item in BenchmarkNoise(25, ["A", "B"]).items(tmp_path, embedded="train")]
    assert sorted(names) == ["2", "A/0.bmp", "A/0.jpg", "A/1.jpg", "B/1.jpg"]
    assert sorted(name for name, _, _ in pairs(tmp_path, PairedFolder("rain", "bad", "good"))) == ["7.bmp", "7.jpg"]


def test_a_stem_that_does_not_match_has_no_partner_and_both_settings_are_named(tmp_path):
    place(tmp_path, "bad/35_outdoor_hazy.jpg", "bad/notes.jpg", "good/35_outdoor_GT.jpg", "good/notes.jpg")
    source = PairedFolder("haze", "bad", "good", match="(.+)_hazy", partner=r"\1_GT")
    with pytest.raises(UserError, match=r"1 of 2 .*'notes\.jpg'.*`match` .*'\(\.\+\)_hazy'.*`partner` .*_GT"):
        source.items(tmp_path, embedded="train")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"match": "(.+"}, r"`match` is '\(\.\+', which is no regular expression: missing \)"),
        ({"match": ".+_hazy"}, "`match` is '.+_hazy'; put the part that the two names share in parentheses"),
        ({"partner": r"\2_GT"}, r"`partner` is '\\2_GT', which does not fit .* 1 group: invalid group reference 2"),
        ({"match": "(a)(b)", "partner": r"\g<x>"}, "`partner` .* 2 groups: unknown group name 'x'"),
        ({"clean": "*/good"}, r"`clean` is '\*/good' and `degraded` 'bad'"),
        ({"degraded": "**/bad", "clean": "*/good"}, "needs the same one"),
        ({"degraded": "*/*/bad"}, "more than one star"),
        ({"degraded": "bad/**"}, "more than one star"),
    ],
)
def test_a_rule_that_can_pair_nothing_is_refused_when_it_is_built(rule, said):
    with pytest.raises(UserError, match=said):
        PairedFolder(**{"task": "rain", "degraded": "bad", "clean": "good", **rule})


def test_a_star_stands_for_the_same_folder_on_both_sides(tmp_path):
    place(tmp_path, *(f"G/{take}/{side}/1.png" for take in ("A_00", "B [1]") for side in ("blur", "sharp", "gamma")))
    place(tmp_path, "G/C_00/sharp/1.png")
    source = PairedFolder("blur", "G/*/blur", "G/*/sharp")
    assert pairs(tmp_path, source) == [
        (f"{take}/1", f"G/{take}/blur/1.png", f"G/{take}/sharp/1.png") for take in ("A_00", "B [1]")
    ]
    assert source.pairing(tmp_path).lone_clean == [tmp_path / "G/C_00/sharp/1.png"]
    shutil.rmtree(tmp_path / "G" / "B [1]" / "sharp")
    with pytest.raises(UserError, match=r"G/B \[1\]/blur' has no partner folder .*G/B \[1\]/sharp'"):
        source.items(tmp_path, embedded="train")


def test_a_double_star_also_stands_for_no_folder(tmp_path):
    place(tmp_path, "test/blur/1.png", "test/sharp/1.png", "test/x/y/blur/1.png", "test/x/y/sharp/1.png")
    (tmp_path / "test" / "loop").symlink_to(tmp_path)
    assert pairs(tmp_path, PairedFolder("blur", "test/**/blur", "test/**/sharp")) == [
        ("1", "test/blur/1.png", "test/sharp/1.png"),
        ("x/y/1", "test/x/y/blur/1.png", "test/x/y/sharp/1.png"),
    ]


def test_folders_of_degraded_pictures_may_share_a_clean_folder(tmp_path):
    place(tmp_path, "part1/5_a.png", "part2/5_b.png", "part2/6_a.png", "clear/5.png", "clear/6.png", "other/5_c.png")
    assert pairs(tmp_path, PairedFolder("haze", "part*", "clear", match="([^_]+)_.*")) == [
        ("1/5_a", "part1/5_a.png", "clear/5.png"),
        ("2/5_b", "part2/5_b.png", "clear/5.png"),
        ("2/6_a", "part2/6_a.png", "clear/6.png"),
    ]


def test_no_folder_is_no_pairs_and_a_bracket_in_a_name_is_a_bracket(tmp_path):
    assert pairs(tmp_path, PairedFolder("blur", "G/*/blur", "G/*/sharp")) == []
    place(tmp_path, "my [old] set/bad/1.png", "my [old] set/good/1.png", "my o set/bad/2.png", "my o set/good/2.png")
    assert [name for name, *_ in pairs(tmp_path, PairedFolder("blur", "my [old] set/bad", "my [old] set/good"))] == [
        "1"
    ]
    starred = PairedFolder("blur", "my [old] set/*ad", "my [old] set/good")
    assert [item.name for item in starred.items(tmp_path, embedded="train")] == ["b/1"]


def test_greyscale_of_sixteen_bits_keeps_its_tones(tmp_path):
    tones = np.array([[0, 128, 257], [25700, 51400, 65535]], np.uint16)
    Image.fromarray(tones).save(tmp_path / "deep.png")
    read = read_rgb(tmp_path / "deep.png")
    assert read.shape == (2, 3, 3)
    assert read[..., 0].tolist() == [[0, 0, 1], [100, 200, 255]]


def test_a_shifted_pair_is_aligned_when_it_is_scored(tmp_path):
    """The clean picture lies 2 rows lower and 3 columns further left than its blurred partner."""
    photograph = np.array(Image.open(PHOTOGRAPH).convert("RGB"))[:100, :120]
    blurred = photograph.astype(np.float32)
    blurred = np.clip((blurred + np.roll(blurred, 1, 0) + np.roll(blurred, 1, 1)) / 3 + 0.5, 0, 255).astype(np.uint8)
    for folder, image in (("blur", blurred[10:90, 10:110]), ("sharp", photograph[8:88, 13:113])):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "1.png")
    store = ImageStore()

    def pair(align: int):
        source = PairedFolder("blur", "blur", "sharp", align=align)
        (item,) = source.items(tmp_path, embedded="")
        return evaluation_pair(source, item, store, None)

    degraded, clean = pair(5)
    assert degraded.shape == clean.shape == (3, 70, 90)
    assert torch.equal(degraded, to_tensor(blurred[15:85, 15:105]))
    assert torch.equal(clean, to_tensor(photograph[15:85, 15:105]))
    assert torch.equal(pair(0)[1], to_tensor(photograph[8:88, 13:113]))
