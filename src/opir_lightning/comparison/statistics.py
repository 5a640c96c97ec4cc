"""Means over seeds, and differences between groups picture by picture with their confidence intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from opir_lightning.comparison.groups import INPUT_AGREES, Group
from opir_lightning.comparison.runs import Run
from opir_lightning.comparison.scores import SetKey

CONFIDENCE, RESAMPLES, SEED = 0.95, 9999, 0
FEW = 8  # pictures, below which an interval by resampling is too narrow to decide anything


class Metric(NamedTuple):
    """A score, and how it is written."""

    key: str
    title: str
    decimals: int


METRICS = (
    Metric("psnr", "PSNR in dB, stage 2", 2),
    Metric("psnr_coarse", "PSNR in dB, stage 1", 2),
    Metric("ssim", "SSIM, stage 2", 4),
    Metric("ssim_coarse", "SSIM, stage 1", 4),
)


class Summary(NamedTuple):
    """Mean and sample standard deviation over n runs; the latter None for one run or an infinite mean."""

    mean: float
    std: float | None
    n: int


class Difference(NamedTuple):
    """How much higher a group scores than the reference, on the same pictures.

    Attributes:
        group: the group.
        key: the set.
        metric: the score.
        pictures: how many were paired.
        mean: of the differences.
        low, high: ends of the interval; None with fewer than two pictures.
        better: share of the pictures on which the group is better.
        unpaired: pictures that only one of the two has, whose inputs differ, or that score infinity.
    """

    group: Group
    key: SetKey
    metric: Metric
    pictures: int
    mean: float
    low: float | None
    high: float | None
    better: float
    unpaired: int

    @property
    def verdict(self) -> str:
        """What the interval says, where there are enough pictures for it to say something."""
        if self.low is None or self.high is None or self.pictures < FEW:
            return "too few pictures"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


def value(run: Run, key: SetKey, profile: str, score: str) -> float | None:
    """The mean score of a run on a set; infinity for identical pictures, None where there is no such score."""
    means = run.sets[key].means.get(profile, {}) if key in run.sets else {}
    if score not in means:
        return None
    found = means[score]
    return math.inf if found is None else found


def summarise(values: Iterable[float | None]) -> Summary | None:
    """Mean and deviation of the values that are there."""
    there = [v for v in values if v is not None]
    if not there:
        return None
    mean = sum(there) / len(there)
    std = float(np.std(there, ddof=1)) if len(there) > 1 and math.isfinite(mean) else None
    return Summary(mean, std, len(there))


def summary(group: Group, key: SetKey, profile: str, score: str) -> Summary | None:
    """A group's score on a set, over its runs."""
    return summarise(value(run, key, profile, score) for run in group.runs)


def damaged_sets(groups: Sequence[Group], keys: Sequence[SetKey], profile: str) -> list[SetKey]:
    """The sets whose mean can be taken: damaged ones that all groups have."""

    def damaged(run: Run, key: SetKey) -> bool:
        before = value(run, key, profile, "psnr_input")
        return before is None or math.isfinite(before)

    return [
        key
        for key in keys
        if all(group.runs_with(key) and all(damaged(run, key) for run in group.runs_with(key)) for group in groups)
    ]


def mean_summary(group: Group, keys: Sequence[SetKey], profile: str, score: str) -> Summary | None:
    """The mean over some sets, of each run that has them all, and over these runs."""
    means = []
    for run in group.runs:
        values = [v for key in keys if (v := value(run, key, profile, score)) is not None]
        if len(values) == len(keys) and keys:
            means.append(sum(values) / len(values))
    return summarise(means)


def picture_means(group: Group, key: SetKey, profile: str, score: str) -> dict[str, float]:
    """A group's score of each picture, averaged over its runs; only pictures that all of its runs on this set have."""
    tables = [
        {
            name: math.inf if found is None else found
            for name, scores in run.sets[key].pictures.items()
            if score in scores.get(profile, {})
            for found in [scores[profile][score]]
        }
        for run in group.runs_with(key)
    ]
    if not tables:
        return {}
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: sum(table[name] for table in tables) / len(tables) for name in names}


def paired(group: Group, reference: Group, key: SetKey, profile: str, score: str) -> tuple[dict[str, float], int]:
    """Differences by picture, and the number of pictures that cannot be paired."""
    ours, theirs = (picture_means(g, key, profile, score) for g in (group, reference))
    inputs = [picture_means(g, key, profile, "psnr_input") for g in (group, reference)]
    differences = {
        name: ours[name] - theirs[name]
        for name in ours.keys() & theirs.keys()
        if math.isfinite(ours[name]) and math.isfinite(theirs[name]) and _same_input(*(i.get(name) for i in inputs))
    }
    ordered = {name: differences[name] for name in ours if name in differences}
    return ordered, len(ours.keys() | theirs.keys()) - len(ordered)


def _same_input(first: float | None, second: float | None) -> bool:
    return first is None or second is None or first == second or abs(first - second) <= INPUT_AGREES


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean, bias-corrected and accelerated; always the same for the same values.

    Args:
        values: at least two.
    """
    from scipy.stats import bootstrap

    sample = np.asarray(values, float)
    if np.ptp(sample) < 1e-12:  # resampling what is equal tells nothing, and acceleration divides by zero
        return float(sample[0]), float(sample[0])
    common = {"confidence_level": CONFIDENCE, "n_resamples": RESAMPLES, "batch": 500, "vectorized": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in ("BCa", "percentile"):  # the first has no answer for some samples of very few values
            result = bootstrap((sample,), np.mean, method=method, rng=np.random.default_rng(SEED), **common)
            low, high = map(float, result.confidence_interval)
            if math.isfinite(low) and math.isfinite(high):
                break
    return low, high


def differences(groups: Sequence[Group], reference: Group, keys: Sequence[SetKey], profile: str) -> list[Difference]:
    """All groups against the reference, on every set and score for which there are pictures in common."""
    from tqdm import tqdm

    rows = []
    pairs = [(group, key) for group in groups if group is not reference for key in keys]
    for group, key in tqdm(pairs, desc="resampling", unit="set", disable=None):
        for metric in METRICS:
            by_name, unpaired = paired(group, reference, key, profile, metric.key)
            if not by_name:
                continue
            values = list(by_name.values())
            low, high = bootstrap_interval(values) if len(values) > 1 else (None, None)
            better = sum(v > 0 for v in values) / len(values)
            mean = sum(values) / len(values)
            rows.append(Difference(group, key, metric, len(values), mean, low, high, better, unpaired))
    return rows
