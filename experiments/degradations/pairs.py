"""The real pairs that the study measures, with their role, and the numbers that describe what was done to a picture.

A set of the role ``train`` (or auxiliary) may decide a setting of the degradations. One of the role ``test`` may not:
it is measured after everything is decided, as a check.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from opir_lightning.data import PairedFolder
from opir_lightning.data.images import list_images, read_rgb
from opir_lightning.data.pair_pixels import read_pair
from opir_lightning.data.store import ImageStore

WINDOW = 640  # only the centre of larger pictures is measured: streaks and kernels have their sizes in pixels
LARGEST_SHIFT = 8  # Levin's pairs are off by up to 5 pixels
HALF_BIN, BINS = 2, 128  # residual histograms: bins 4 grey levels wide, from -256 to 255


class RealSet(NamedTuple):
    """Pairs of one kind.

    Attributes:
        name: as in the tables.
        task: which degradation stands against it.
        role: ``train`` may decide settings, ``test`` may not.
        source: where the files are.
        aligned: shift the degraded picture by whole pixels to where it fits the clean one best.
    """

    name: str
    task: str
    role: Literal["train", "test"]
    source: PairedFolder
    aligned: bool = False


def _set(
    name: str,
    task: str,
    role: Literal["train", "test"],
    folders: str,
    match: str = "(.+)",
    partner: str = r"\1",
    *,
    aligned: bool = False,
) -> RealSet:
    degraded, clean = folders.split()
    return RealSet(name, task, role, PairedFolder(task, degraded, clean, match=match, partner=partner), aligned)


BEFORE_UNDERSCORE = "([^_]+)_.*"
SETS = (
    _set("Rain13K-train", "rain", "train", "Rain13K-train/input Rain13K-train/target"),
    _set("RainSIRR", "rain", "train", "RainSIRR/input RainSIRR/target"),
    _set("ITS", "haze", "train", "ITS/hazy ITS/gt", BEFORE_UNDERSCORE),
    _set("OTS-crops", "haze", "train", "OTS-crops/hazy OTS-crops/gt", BEFORE_UNDERSCORE),
    _set("REVIDE", "haze", "train", "REVIDE/hazy REVIDE/gt"),
    _set("LOL-v1-train", "low_light", "train", "LOL-v1/train/low LOL-v1/train/high"),
    _set("PolyU", "noise", "train", "PolyU/noisy PolyU/clean"),
    _set("Rain100L", "rain", "test", "Rain100L/input Rain100L/target"),
    _set("Rain100H", "rain", "test", "Rain100H/input Rain100H/target"),
    _set("SOTS-outdoor", "haze", "test", "SOTS-outdoor/hazy SOTS-outdoor/gt", BEFORE_UNDERSCORE),
    _set("SOTS-indoor", "haze", "test", "SOTS-indoor/hazy SOTS-indoor/gt", BEFORE_UNDERSCORE),
    _set("O-HAZE", "haze", "test", "O-HAZE/hazy O-HAZE/gt", "(.+)_hazy", r"\1_GT"),
    _set("LOL-v1-eval15", "low_light", "test", "LOL-v1/eval15/low LOL-v1/eval15/high"),
    _set("Levin", "blur", "test", "Levin/blur Levin/sharp", r"(.+)_kernel\d+", aligned=True),
    _set("GoPro", "blur", "test", "GoPro/test/blur GoPro/test/sharp"),
)


class Damage(NamedTuple):
    """What was done to one picture; the residual is degraded - clean, in 8-bit grey levels.

    Attributes:
        psnr: of the degraded picture, RGB, dB.
        bias: mean of the residual.
        fine: share of the residual's variance in structures finer than some 8 pixels.
        along: correlation of the residual with itself 8 pixels further down.
        across: the same, 8 pixels further to the right. Streaks are high along and low across.
        contrast: deviation of the degraded picture over that of the clean one.
    """

    psnr: float
    bias: float
    fine: float
    along: float
    across: float
    contrast: float


def window(pixels: np.ndarray) -> np.ndarray:
    """The centre of ``(H, W, 3)``, at most WINDOW pixels high and wide."""
    top, left = (max(side - WINDOW, 0) // 2 for side in pixels.shape[:2])
    return pixels[top : top + WINDOW, left : left + WINDOW]


def load(real: RealSet, root: Path, *, most: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(degraded, clean) uint8 of a set, empty if it is not there; at most ``most``, spread evenly over the names."""
    items = real.source.items(root, embedded="train")
    if most is not None and len(items) > most:
        items = [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
    pairs = []
    store = ImageStore()
    for item in items:
        clean, degraded = read_pair(item, store)
        assert degraded is not None, item  # a paired folder lists pairs only
        pair = align(degraded, clean) if real.aligned else (degraded, clean)
        pairs.append((window(pair[0]), window(pair[1])))
    return pairs


def align(degraded: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to what they share after the whole-pixel shift with the least squared error.

    Where is decided on the part that every shift leaves, so that no shift gains by what it cuts off.
    """
    r = LARGEST_SHIFT
    height, width = clean.shape[:2]
    inner = degraded[r : height - r, r : width - r].astype(np.float32)
    errors = {
        (dy, dx): float(np.square(inner - clean[r + dy : height - r + dy, r + dx : width - r + dx]).mean())
        for dy in range(-r, r + 1)
        for dx in range(-r, r + 1)
    }
    dy, dx = min(errors, key=errors.__getitem__)
    return degraded[r : height - r, r : width - r], clean[r + dy : height - r + dy, r + dx : width - r + dx]


def damage(degraded: np.ndarray, clean: np.ndarray) -> Damage:
    """Measure one pair of ``(H, W, 3)`` uint8."""
    residual = degraded.astype(np.float32) - clean.astype(np.float32)
    grey = residual.mean(axis=2)
    smooth = cv2.GaussianBlur(grey, (0, 0), 4.0)
    variance = max(float(grey.var()), 1e-9)
    return Damage(
        psnr=float(10 * np.log10(255**2 / max(float(np.square(residual).mean()), 1e-3))),
        bias=float(residual.mean()),
        fine=float((grey - smooth).var()) / variance,
        along=_correlation(grey[8:], grey[:-8]),
        across=_correlation(grey[:, 8:], grey[:, :-8]),
        contrast=float(degraded.std() / max(float(clean.std()), 1e-9)),
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / max(float(np.sqrt((a * a).mean() * (b * b).mean())), 1e-9))


def histogram(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Share of the residuals in each of the BINS bins, all pictures alike."""
    edges = np.arange(BINS + 1) * 2 * HALF_BIN - 256
    shares = []
    for degraded, clean in pairs:
        counts, _ = np.histogram(degraded.astype(np.int16) - clean.astype(np.int16), edges)
        shares.append(counts / counts.sum())
    return np.mean(shares, axis=0)


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Earth mover's (Wasserstein-1) distance of two residual histograms in grey levels."""
    return float(np.abs(np.cumsum(a - b)).sum() * 2 * HALF_BIN)


def clean_pictures(folder: Path) -> list[np.ndarray]:
    """All pictures of a folder, their centres."""
    return [window(read_rgb(path)) for path in list_images(folder)]
