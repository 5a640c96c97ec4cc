"""The sample stream: what it depends on and what it does not; pairs stay pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from opir_lightning.data.curriculum import Curriculum
from opir_lightning.data.depth import relative_depth
from opir_lightning.data.evaluation import EvaluationSet
from opir_lightning.data.mixture import Mixture, SampleNumbers
from opir_lightning.data.samples import CollatePending, collate, degrade_pending
from opir_lightning.data.sources import BenchmarkNoise, CleanFolder, PairedFolder
from opir_lightning.data.store import ImageStore
from opir_lightning.degradations import Blur, Haze, Identity, Noise, Rain
from opir_lightning.errors import UserError

TASKS = ["none", "noise", "rain", "blur"]


def embedded(task, degradation, weight=1.0):
    source = CleanFolder(task=task, degradation=degradation, folders=[], weight=weight)
    return source, source.items(None, embedded="train")


@pytest.fixture(scope="module")
def mixture():
    return Mixture(
        {
            "none": embedded("none", Identity(), 0.5),
            "noise": embedded("noise", Noise()),
            "rain": embedded("rain", Rain()),
            "blur": embedded("blur", Blur(), 2.0),
        },
        tasks=TASKS,
        store=ImageStore(),
        crop=32,
        seed=3,
        label_share=0.4,
    )


def same(first, second):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(first, second, strict=True))


def test_a_sample_depends_on_its_number_alone(mixture):
    first = [mixture[n] for n in (5, 6, 7)]
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002  the legacy state is the one that must not matter
    again = [mixture[n] for n in (7, 5, 6)]
    assert same(first[0], again[1])
    assert same(first[1], again[2])
    assert same(first[2], again[0])
    assert not same(first[0], first[1])


def test_another_seed_gives_other_samples(mixture):
    other = Mixture(
        {"noise": embedded("noise", Noise())}, tasks=TASKS, store=ImageStore(), crop=32, seed=4, label_share=0.4
    )
    mine = Mixture(
        {"noise": embedded("noise", Noise())}, tasks=TASKS, store=ImageStore(), crop=32, seed=3, label_share=0.4
    )
    assert not same(other[0], mine[0])


def test_workers_do_not_change_the_stream(mixture):
    def stream(workers):
        loader = DataLoader(
            mixture, batch_size=4, sampler=SampleNumbers(count=16), num_workers=workers, collate_fn=collate
        )
        return list(loader)

    for alone, shared in zip(stream(0), stream(2), strict=True):
        assert torch.equal(alone.degraded, shared.degraded)
        assert torch.equal(alone.clean, shared.clean)
        assert alone.name == shared.name


def test_threads_do_not_change_the_stream(mixture):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = [mixture[n] for n in range(8)]
        torch.set_num_threads(2)
        two = [mixture[n] for n in range(8)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_some_codes_are_heard_from_one_crop_and_the_samples_stay_what_they_were(mixture):
    sources = dict(zip(mixture.names, mixture.sources, strict=True))
    settings = {"tasks": TASKS, "store": mixture.store, "crop": 32, "seed": 3, "label_share": 0.4}
    some = Mixture(sources, **settings, heard_alone=0.25)
    heard = np.array([some._heard(n) for n in range(2000)])
    assert (heard >= 0).mean() == pytest.approx(0.25, abs=0.03)
    assert (heard[heard < 0] == -1).all()
    assert np.histogram(heard[heard >= 0], bins=4, range=(0, 1))[0] == pytest.approx(125, abs=35)
    alone = int(np.flatnonzero(heard >= 0)[0])
    assert some[alone].heard == heard[alone]
    assert same(some[alone]._replace(heard=-1.0), mixture[alone])
    batch = collate([some[alone], mixture[alone]])
    assert batch.heard.tolist() == pytest.approx([heard[alone], -1])


def test_sources_are_drawn_by_weight_and_labelled(mixture):
    tasks = np.array([mixture[n].task for n in range(400)])
    shares = np.bincount(tasks, minlength=4) / 400
    assert shares == pytest.approx(np.array([0.5, 1, 1, 2]) / 4.5, abs=0.07)
    assert np.mean([mixture[n].label_given for n in range(400)]) == pytest.approx(0.4, abs=0.07)
    names = ["none", "noise", "rain", "blur"]
    assert [mixture.source_of(n) for n in range(400)] == [names[task] for task in tasks]


@pytest.fixture
def ramp(tmp_path):
    """A folder with one grey picture of 20 x 23 pixels whose values tell where they lie: 8 x row + column."""
    rows, columns = np.mgrid[:20, :23]
    grey = (8 * rows + columns).astype(np.uint8)
    Image.fromarray(np.stack([grey] * 3, 2)).save(tmp_path / "ramp.png")
    return tmp_path


def plain(root, **settings):
    source = CleanFolder(task="none", degradation=Identity(), folders=["."], weight=1, augmentation="none")
    return Mixture(
        {"none": (source, source.items(root, embedded="train"))},
        tasks=TASKS,
        store=ImageStore(),
        seed=3,
        label_share=0,
        **settings,
    )


def test_crops_lie_everywhere_in_a_picture_and_nowhere_else(ramp):
    mixture = plain(ramp, crop=16)
    corners = [int(mixture[n].clean[0, 0, 0] * 255 + 0.5) for n in range(400)]
    places = {(corner // 8, corner % 8) for corner in corners}
    assert places == {(row, column) for row in range(5) for column in range(8)}
    first = (mixture[0].clean[0] * 255 + 0.5).int()
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    assert torch.equal(first - first[0, 0], (8 * rows + columns).int())  # without jitter it is the picture itself


def test_a_picture_that_is_smaller_than_a_crop_is_mirrored_at_its_end(ramp):
    crop = (plain(ramp, crop=30)[0].clean[0] * 255 + 0.5).int()
    assert torch.equal(crop[:20, :23], torch.tensor([[8 * r + c for c in range(23)] for r in range(20)]).int())
    assert torch.equal(crop[20:], crop[10:20].flip(0))
    assert torch.equal(crop[:, 23:], crop[:, 16:23].flip(1))


def test_brightness_contrast_and_saturation_vary_around_the_picture_by_the_jitter(tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(90, 130, (16, 16, 3), np.uint8)
    picture[..., 2] = picture[..., 2] // 2  # a colour to be more or less of
    Image.fromarray(picture).save(tmp_path / "a.png")
    plain_one = plain(tmp_path, crop=16)[0].clean

    def measured(clean):
        grey = clean.mean(0)
        return clean.mean(), grey.std() / grey.mean(), (clean.max(0).values - clean.min(0).values).mean() / clean.mean()

    mixture = plain(tmp_path, crop=16, jitter=0.3)
    ratios = []
    for n in range(300):
        clean = mixture[n].clean
        ratios.append([float(a / b) for a, b in zip(measured(clean), measured(plain_one), strict=True)])
    ratios = np.array(ratios)
    untouched = np.all(np.abs(ratios - 1) < 1e-3, axis=1)
    assert untouched.mean() == pytest.approx(0.5, abs=0.1)
    for ratio in ratios.T:
        assert 0.4 < ratio.min() < 0.85  # they are varied all three, and the last two share colours
        assert 1.15 < ratio.max() < 1.8
    assert 0.65 < ratios[:, 0].min() < ratios[:, 0].max() < 1.35


def test_a_curriculum_that_names_what_is_not_there_or_leaves_nothing_is_refused():
    def begin(**weights):
        sources = {"none": embedded("none", Identity()), "noise": embedded("noise", Noise(), 0.0)}
        curriculum = Curriculum(samples=10, weights=weights)
        return Mixture(sources, tasks=TASKS, store=ImageStore(), crop=32, seed=0, label_share=0, curriculum=curriculum)

    with pytest.raises(
        UserError, match=r"^The curriculum has weights for fog, hail, and the sources are none, noise\.$"
    ):
        begin(hail=1.0, none=1.0, fog=2.0)
    with pytest.raises(UserError, match=r"^The curriculum begins with no source at all: all its weights are 0\.$"):
        begin(none=0.0, noise=1.0)  # and the weight of the other is 0
    assert begin(none=0.1, noise=0.0)[0].task == 0


def test_undamaged_samples_are_their_own_clean_picture_and_damaged_ones_are_not(mixture):
    for n in range(30):
        sample = mixture[n]
        assert sample.degraded.shape == sample.clean.shape == (3, 32, 32)
        if sample.task == 0:
            assert torch.equal(sample.degraded, sample.clean)


def test_ranks_share_an_epoch_without_overlap_and_epochs_follow_each_other():
    def numbers(rank, epoch):
        return list(SampleNumbers(count=12, place=lambda: (epoch, 0), rank=rank, world=2))

    assert sorted(numbers(0, 0) + numbers(1, 0)) == list(range(12))
    assert sorted(numbers(0, 1) + numbers(1, 1)) == list(range(12, 24))


def test_a_resumed_epoch_goes_on_with_the_next_sample_and_the_one_after_is_whole():
    places = iter([(3, 8), (4, 0)])
    sampler = SampleNumbers(count=12, place=lambda: next(places))
    assert list(sampler) == [44, 45, 46, 47]
    assert len(sampler) == 12
    assert list(sampler) == list(range(48, 60))


@pytest.fixture
def pairs(tmp_path):
    """Pairs in which the degraded picture is the clean one's negative, so that a broken pairing shows."""
    generator = np.random.default_rng(0)
    for folder in ("bad", "good"):
        (tmp_path / folder).mkdir()
    for index, (height, width) in enumerate([(40, 50), (20, 60)]):  # the second is smaller than the crop
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "good" / f"{index}.png")
        Image.fromarray(255 - pixels).save(tmp_path / "bad" / f"{index}_0.8_0.1.png")
    return tmp_path


def paired(**settings):
    return PairedFolder(task="rain", degraded="bad", clean="good", match="([^_]+)_.*", **settings)


@pytest.mark.parametrize("augmentation", ["d4", "flip", "none"])
def test_both_halves_of_a_pair_are_cut_and_turned_alike(pairs, augmentation):
    source = paired(augmentation=augmentation)
    items = source.items(pairs, embedded="train")
    mixture = Mixture({"p": (source, items)}, tasks=TASKS, store=ImageStore(), crop=32, seed=0, label_share=0)
    crops = [mixture[n] for n in range(20)]
    for sample in crops:
        torch.testing.assert_close(sample.degraded, 1 - sample.clean)
    assert {sample.name for sample in crops} == {"0_0.8_0.1", "1_0.8_0.1"}


def test_augmentation_none_never_turns_and_d4_does(pairs):
    def crops(augmentation):
        source = paired(augmentation=augmentation)
        items = source.items(pairs, embedded="train")[:1]
        store = ImageStore()
        mixture = Mixture({"p": (source, items)}, tasks=TASKS, store=store, crop=32, seed=0, label_share=0)
        whole = torch.from_numpy(store[items[0].clean].transpose(2, 0, 1).copy()).float() / 255
        windows = whole.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)
        return [bool((windows == mixture[n].clean).flatten(1).all(1).any()) for n in range(12)]

    assert all(crops("none"))
    assert not all(crops("d4"))


def test_augmentation_flip_is_left_right_alone(pairs):
    source = paired(augmentation="flip")
    items = source.items(pairs, embedded="train")[:1]
    store = ImageStore()
    mixture = Mixture({"p": (source, items)}, tasks=TASKS, store=store, crop=40, seed=0, label_share=0)
    whole = torch.from_numpy(store[items[0].clean].transpose(2, 0, 1).copy()).float() / 255
    windows = whole.unfold(2, 40, 1).permute(2, 0, 1, 3)  # as high as the picture
    seen = set()
    for n in range(16):
        clean = mixture[n].clean
        straight, mirrored = (bool((windows == c).flatten(1).all(1).any()) for c in (clean, clean.flip(-1)))
        assert straight != mirrored
        seen.add(mirrored)
    assert seen == {True, False}


def test_a_missing_partner_is_named(pairs):
    (pairs / "good" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 pictures.*'1_0\.8_0\.1\.png'"):
        paired().items(pairs, embedded="train")


def test_a_pair_of_two_sizes_is_named(pairs):
    Image.new("RGB", (9, 9)).save(pairs / "good" / "1.png")
    source = paired()
    items = source.items(pairs, embedded="train")
    sets = EvaluationSet("p", source, items, tasks=TASKS, store=ImageStore())
    with pytest.raises(UserError, match=r"60x20.*9x9"):
        sets[1]


def test_evaluation_pictures_are_the_same_every_time_and_span_the_severities():
    source, items = embedded("noise", Noise(shot_share=0.0))
    sets = EvaluationSet("n", source, items[:3], tasks=TASKS, store=ImageStore(), severity=(0.1, 0.9))
    assert same(sets[1], sets[1])
    errors = [(s.degraded - s.clean).std().item() for s in (sets[0], sets[1], sets[2])]
    assert errors[0] < errors[1] < errors[2]
    centre = EvaluationSet("n", source, items, tasks=TASKS, store=ImageStore(), centre=64)
    assert centre[0].clean.shape == (3, 64, 64)
    assert centre.whole()[0].clean.shape[-1] > 64
    assert centre[0].clean.shape == (3, 64, 64)


def test_benchmark_noise_is_seeded_by_the_file_name():
    source = BenchmarkNoise(sigma_255=25, folders=[])
    items = source.items(None, embedded="heldout")
    store = ImageStore()
    sets = EvaluationSet("n", source, items, tasks=TASKS, store=store)
    reordered = EvaluationSet("n", source, items[::-1], tasks=TASKS, store=store)
    assert same(sets[0], reordered[len(items) - 1])
    levels = sets[0].degraded * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_jitter_varies_clean_pictures_before_they_are_degraded_and_never_pairs(pairs):
    def crops(jitter, source, items):
        store = ImageStore()
        mixture = Mixture(
            {"s": (source, items)}, tasks=TASKS, store=store, crop=32, seed=0, label_share=0, jitter=jitter
        )
        return [mixture[n] for n in range(10)]

    plain, varied = (crops(jitter, *embedded("none", Identity())) for jitter in (0.0, 0.3))
    changed = [not torch.equal(a.clean, b.clean) for a, b in zip(plain, varied, strict=True)]
    assert 2 <= sum(changed) <= 8
    assert all(torch.equal(sample.clean, sample.degraded) for sample in varied)
    source = paired()
    for sample in crops(0.3, source, source.items(pairs, embedded="train")):
        torch.testing.assert_close(sample.degraded, 1 - sample.clean)


def test_some_clean_pictures_lose_their_colours_and_the_others_stay_what_they_were(pairs):
    def crops(source, items, **settings):
        mixture = Mixture(
            {"s": (source, items)}, tasks=TASKS, store=ImageStore(), crop=16, seed=0, label_share=0, **settings
        )
        return [mixture[n] for n in range(60)]

    source, items = embedded("noise", Noise(5, severity=1.0))
    plain, varied = crops(source, items, jitter=0.2), crops(source, items, jitter=0.2, grey_share=0.3)
    grey = [bool((sample.clean == sample.clean[:1]).all()) for sample in varied]
    assert 10 <= sum(grey) <= 26
    for one, other, is_grey in zip(plain, varied, grey, strict=True):
        assert is_grey or same(one, other)
        assert not is_grey or not torch.equal(other.degraded[0], other.degraded[1])  # the noise keeps its colours
    source, items = paired(), paired().items(pairs, embedded="train")
    assert all(same(a, b) for a, b in zip(crops(source, items), crops(source, items, grey_share=1.0), strict=True))


def test_crops_are_cut_from_the_picture_at_another_size(tmp_path):
    """On a picture whose red rises by 2 a column and whose green by 2 a row, the slopes of a crop tell its size."""
    rows, columns = np.mgrid[:100, :120]
    Image.fromarray(np.stack([2 * columns, 2 * rows, rows * 0], 2).astype(np.uint8)).save(tmp_path / "a.png")

    def sizes(enlarged=True, **settings):
        source = CleanFolder("none", Identity(), ["."], augmentation="none", enlarged=enlarged)
        sources = {"none": (source, source.items(tmp_path, embedded="train"))}
        mixture = Mixture(sources, tasks=TASKS, store=ImageStore(), crop=32, seed=3, label_share=0, **settings)
        found = []
        for n in range(80):
            clean = mixture[n].clean * 255
            across, down = (clean[0, :, 28] - clean[0, :, 4]).mean() / 24, (clean[1, 28] - clean[1, 4]).mean() / 24
            assert across == pytest.approx(float(down), rel=0.06)
            assert clean[2].max() == 0
            found.append(2 / float(across))
        return np.array(found)

    assert sizes() == pytest.approx(np.ones(80), rel=0.01)
    half = sizes(resize=[0.5, 2.0], resize_share=0.5)
    assert (np.abs(half - 1) < 0.01).mean() == pytest.approx(0.5, abs=0.15)
    every = np.log2(sizes(resize=[0.5, 2.0], resize_share=1.0))
    assert np.histogram(every, bins=4, range=(-1.1, 1.1))[0] == pytest.approx(20, abs=9)  # in equal ratios
    kept = sizes(enlarged=False, resize=[0.5, 2.0], resize_share=1.0)
    assert 0.48 < kept.min() < kept.max() < 1.02
    assert kept.std() > 0.1
    # The picture has no more than 100 rows: at a tenth of its size it would not fill a crop.
    assert sizes(resize=0.1, resize_share=1.0) == pytest.approx(np.full(80, 0.32), rel=0.02)


def test_pairs_functions_and_batched_degradations_share_a_pending_batch(pairs):
    """A batch of all three kinds, finished on the device, is the one that the workers would have made."""

    def scratched(clean, *, generator, severity):
        return clean * (1 - 0.5 * severity * torch.rand((), generator=generator))

    photographs = CleanFolder("noise", Noise(), ["good"])
    function = CleanFolder("blur", scratched, ["good"])
    sources = {s.task: (s, s.items(pairs, embedded="train")) for s in (paired(), photographs, function)}
    common = {"tasks": TASKS, "store": ImageStore(), "crop": 32, "seed": 0, "label_share": 0.5}
    workers, device = Mixture(sources, **common), Mixture(sources, **common, pending=True, degrade_here=False)
    numbers = range(24)
    want = collate([workers[n] for n in numbers])
    pending = CollatePending(32)([device[n] for n in numbers])
    assert len(pending.pair_places) > 2
    assert len(pending.finished_places) > 2
    assert sum(len(group.places) for group in pending.groups) > 3
    got = degrade_pending(pending, device.batched(), 32)
    assert same(got, want)


def test_a_function_is_a_degradation_and_gets_a_severity(pairs):
    seen = []

    def darken(clean, *, generator, severity):
        seen.append(severity)
        return clean * (1 - severity)

    source = CleanFolder("noise", darken, ["good"])
    items = source.items(pairs, embedded="train")
    mixture = Mixture({"own": (source, items)}, tasks=TASKS, store=ImageStore(), crop=16, seed=0, label_share=0)
    samples = [mixture[n] for n in range(20)]
    assert 0 <= min(seen) < 0.3 < 0.7 < max(seen) <= 1
    torch.testing.assert_close(samples[3].degraded, samples[3].clean * (1 - seen[3]))
    EvaluationSet("own", source, items, tasks=TASKS, store=ImageStore(), severity=(0.25, 0.75))[1]
    assert seen[-1] == 0.75


@pytest.mark.parametrize("returned", [None, torch.zeros(1, 8, 8), torch.zeros(3, 16, 16, dtype=torch.uint8)])
def test_a_function_that_returns_no_picture_is_told_so(pairs, returned):
    source = CleanFolder("noise", lambda clean, *, generator, severity: returned, ["good"])
    items = source.items(pairs, embedded="train")
    mixture = Mixture({"own": (source, items)}, tasks=TASKS, store=ImageStore(), crop=16, seed=0, label_share=0)
    with pytest.raises(UserError, match="must return a float tensor of the same shape"):
        mixture[0]


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_depth_map_is_cut_and_turned_with_its_picture_and_decides_the_haze(pairs, kind):
    """The picture's red is the depth, so that in every crop the haze must follow the red."""
    (pairs / "depth").mkdir()
    ramp = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    picture = np.stack([ramp, np.zeros_like(ramp), np.zeros_like(ramp)], axis=2)
    Image.fromarray(picture).save(pairs / "good" / "0.png")
    depth = ramp.astype(np.uint16) * 7
    if kind == "png":
        Image.fromarray(depth).save(pairs / "depth" / "0.png")
    else:
        np.save(pairs / "depth" / "0.npy", depth.astype(np.float64))
    source = CleanFolder("haze", Haze(severity=[0.9, 1.0], quantise=False, tint=0.0), ["good"], depths=["depth"])
    items = [item for item in source.items(pairs, embedded="train") if item.name == "0"]
    assert items[0].depth is not None
    common = {"tasks": [*TASKS, "haze"], "store": ImageStore(), "crop": 24, "seed": 0, "label_share": 0}
    for pending in (False, True):
        mixture = Mixture({"haze": (source, items)}, **common, pending=True, degrade_here=not pending)
        batch = CollatePending(24)([mixture[n] for n in range(8)])
        degraded, clean, *_ = degrade_pending(batch, mixture.batched(), 24)
        for air, red in zip(degraded[:, 1], clean[:, 0], strict=True):  # green is black: all it shows is air
            order = red.flatten().argsort(stable=True)
            assert (air.flatten()[order].diff() >= -1e-5).all()
            assert air.max() - air.min() > 0.05
    wrong = np.ones((9, 9), np.uint8)
    Image.fromarray(wrong).save(pairs / "depth" / "1.png")
    items = [item for item in source.items(pairs, embedded="train") if item.name == "1"]
    with pytest.raises(UserError, match="9x9 and its picture"):
        Mixture({"haze": (source, items)}, **common)[0]


def test_disparity_is_the_inverse_of_depth_with_a_farthest_point():
    disparity = np.array([[0, 1, 2, 4]], np.uint8)
    depth = relative_depth(disparity, disparity=True)
    assert depth.mean() == pytest.approx(1)
    assert depth[0] / depth[0, 3] == pytest.approx([20, 4, 2, 1])
    assert relative_depth(disparity)[0] == pytest.approx([0, 1 / 1.75, 2 / 1.75, 4 / 1.75])
