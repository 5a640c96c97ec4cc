"""The figures that have a target, computed from the results of one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from cases import (
    BOTH,
    EINSUM,
    FORWARD,
    FUSED_TRITON,
    IMAGE_GRADIENT,
    SHIFTED,
    SUM,
    TAPS_GRADIENT,
    TRITON,
    UNFUSED_TRITON,
    Setting,
    series_for,
    setting_of,
    tensor_bytes,
)

MEGAPIXELS = 4_000_000  # pixels from which on the targets for CUDA count

Index = dict[tuple[Setting, str, str], dict[str, Any]]


class Target(NamedTuple):
    """A figure and what it should be.

    Attributes:
        name: what is compared.
        setting: at which setting.
        value: the figure, None where it was not measured.
        limit: it should be this,
        at_least: or more; else or less.
    """

    name: str
    setting: Setting
    value: float | None
    limit: float
    at_least: bool

    @property
    def passed(self) -> bool | None:
        """Whether the target is met; None where it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def index_of(results: dict[str, Any]) -> Index:
    """The timed cases by setting, way and quantity; of those measured twice the first."""
    index: Index = {}
    for case in results["cases"]:
        if case["status"] == "timed":
            index.setdefault((setting_of(case["setting"]), case["way"], case["quantity"]), case)
    return index


def targets_of(results: dict[str, Any]) -> list[Target]:
    """All targets for the device of a run, measured or not."""
    index, device = index_of(results), results["meta"]["kind"]
    settings = dict.fromkeys(s for series in series_for(device) for s in series.settings)
    of_device = _cuda if device == "cuda" else _cpu
    return [target for s in settings for target in of_device(index, s)]


def _is_default(s: Setting) -> bool:
    return s.C == 3 and s.G == 3 and s.K == 3 and s.dilations == (1, 2, 3, 4)


def _cpu(index: Index, s: Setting) -> Iterator[Target]:
    """``shifted`` at 512 x 512 in float32, the default operator and K = 5 to 11 with a single dilation."""
    if s.F or (s.B, s.C, s.H, s.W, s.image, s.taps) != (1, 3, 512, 512, "float32", "float32"):
        return
    if not (_is_default(s) or (s.dilations == (1,) and s.K >= 5)):
        return
    for quantity, limit in ((FORWARD, 12), (BOTH, 10)):
        yield Target(
            f"{quantity}: {SHIFTED} faster than {EINSUM}", s, _speedup(index, s, EINSUM, SHIFTED, quantity), limit, True
        )
    case = index.get((s, SHIFTED, FORWARD))
    extra = case["peak_bytes"] / tensor_bytes(s)["result"] if case else None
    yield Target(f"{FORWARD}: peak memory of {SHIFTED} over the result's", s, extra, 3, False)


def _cuda(index: Index, s: Setting) -> Iterator[Target]:
    """``triton`` from 4 megapixels on, 16-bit taps or features: the default operator, and K = 5 and 7 shared."""
    if s.B * s.H * s.W < MEGAPIXELS or (s.image, s.taps) != ("float32", "bfloat16"):
        return
    if not (_is_default(s) or (s.C == 3 and s.G == 1 and s.K in (5, 7) and s.dilations == (1,))):
        return
    if s.F:
        for quantity, limit in ((FORWARD, 1.7), (BOTH, 1.5)):
            value = _speedup(index, s, UNFUSED_TRITON, FUSED_TRITON, quantity)
            yield Target(f"{quantity}: {FUSED_TRITON} faster than {UNFUSED_TRITON}", s, value, limit, True)
        return
    for quantity, limit in ((FORWARD, 1.3), (TAPS_GRADIENT, 1.3), (IMAGE_GRADIENT, 1.6)):
        case = index.get((s, TRITON, quantity))
        yield Target(
            f"{quantity}: time over the copy of its bytes", s, case["copy_ratio"] if case else None, limit, False
        )
    yield Target(f"{BOTH}: {TRITON} faster than {SUM}", s, _speedup(index, s, SUM, TRITON, BOTH), 10, True)


def _speedup(index: Index, s: Setting, slow: str, fast: str, quantity: str) -> float | None:
    """How many times faster one way is than another, by medians."""
    one, other = index.get((s, slow, quantity)), index.get((s, fast, quantity))
    return one["median_ms"] / other["median_ms"] if one and other else None
