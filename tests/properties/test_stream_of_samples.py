"""The stream of samples: a number decides a sample, weights decide the shares, ranks and resumes share an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opir_lightning.data.mixture import Mixture, SampleNumbers, samples_used
from opir_lightning.data.sources import CleanFolder
from opir_lightning.data.store import ImageStore
from opir_lightning.degradations import Identity, Noise

TASKS = ["none", "noise"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(0)
    for name, size in (("a", (20, 31, 3)), ("b", (9, 12, 3)), ("c", (40, 40, 3))):  # one is smaller than a crop
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{name}.png")
    return folder


def made(root: Path, seed: int, weights: list[float], crop: int = 16, jitter: float = 0.0) -> Mixture:
    sources = {}
    for number, weight in enumerate(weights):
        task = TASKS[number % 2]
        source = CleanFolder(
            task=task,
            degradation=Noise() if number % 2 else Identity(),
            folders=["."],
            weight=weight,
            augmentation="d4",
        )
        sources[str(number)] = (source, source.items(root, embedded="train"))
    return Mixture(sources, tasks=TASKS, store=ImageStore(), crop=crop, seed=seed, label_share=0.5, jitter=jitter)


weights = st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda values: sum(values) > 0.01)


@given(
    seed=st.integers(0, 2**31),
    numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    shares=weights,
    crop=st.integers(1, 24),
    jitter=st.sampled_from([0.0, 0.3]),
    data=st.data(),
)
def test_a_sample_depends_on_seed_and_number_alone(root, seed, numbers, shares, crop, jitter, data):
    mixture = made(root, seed, shares, crop, jitter)
    first = {number: mixture[number] for number in numbers}
    other = made(root, seed, shares, crop, jitter)
    for number in data.draw(st.permutations(numbers)):
        for one, two in zip(first[number], other[number], strict=True):
            assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
        assert first[number].clean.shape == first[number].degraded.shape == (3, crop, crop)
        if first[number].task == 0:
            assert torch.equal(first[number].clean, first[number].degraded)


@given(shares=weights)
def test_sources_have_the_shares_of_their_weights(root, shares):
    mixture = made(root, 0, shares)
    drawn = (np.arange(4000) + 0.5) / 4000
    counts = np.bincount([mixture._source(0, value) for value in drawn], minlength=len(shares))
    assert counts / 4000 == pytest.approx(np.array(shares) / sum(shares), abs=1 / 2000)
    assert mixture._source(0, float(np.nextafter(1, 0))) < len(shares)
    assert not any(count for count, share in zip(counts, shares, strict=True) if share == 0)


@given(epoch=st.integers(0, 50), per_rank=st.integers(1, 30), world=st.integers(1, 5), data=st.data())
def test_ranks_share_what_is_left_of_an_epoch(epoch, per_rank, world, data):
    count = per_rank * world
    skip = data.draw(st.integers(0, per_rank)) * world
    ranks = [
        list(SampleNumbers(count=count, place=lambda: (epoch, skip), rank=rank, world=world)) for rank in range(world)
    ]
    assert sorted(number for rank in ranks for number in rank) == list(range(epoch * count + skip, (epoch + 1) * count))
    assert {len(rank) for rank in ranks} == {(count - skip) // world}


@given(
    steps=st.integers(0, 500), batches=st.integers(1, 40), accumulate=st.integers(1, 7), size=st.integers(1, 16),
    limit=st.none() | st.integers(1, 50),
)  # fmt: skip
def test_samples_used_are_those_of_going_step_by_step(steps, batches, accumulate, size, limit):
    used = batches if limit is None else min(batches, limit)
    epoch, done = 0, 0
    for _ in range(steps):
        done = min(done + accumulate, used)
        if done == used:
            epoch, done = epoch + 1, 0
    assert samples_used(steps, batches=batches, accumulate=accumulate, global_batch=size, limit=limit) == (
        epoch, done * size
    )  # fmt: skip
