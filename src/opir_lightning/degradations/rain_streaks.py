"""Streaks of rain, drawn one by one as anti-aliased bars."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

MAX_ANGLE = 60.0  # streaks are drawn row by row, which needs them to be steeper than 30 degrees
POINTS_AT_ONCE = 1 << 19  # bounds the memory of large pictures: 40 bytes a point


class Streaks(NamedTuple):
    """One array of N numbers per property; pixels and degrees.

    Attributes:
        x, y: centre of the streak, pixel (0, 0) having its centre at (0, 0).
        length: from end to end, along the streak.
        width: across the streak, at half brightness; below 1 the streak is fainter instead of narrower.
        angle: from the vertical; positive leans to the right at the bottom. Within +-60.
        brightness: what is added at the middle of a streak that is at least one pixel wide, 1 is white.
        softness: 0 has edges as sharp as pixels allow, 1 fades all the way from the middle line (out of focus).
        taper: 0 ends abruptly, 1 fades all the way from the middle to the ends.
    """

    x: np.ndarray
    y: np.ndarray
    length: np.ndarray
    width: np.ndarray
    angle: np.ndarray
    brightness: np.ndarray
    softness: np.ndarray
    taper: np.ndarray


def draw_streaks(height: int, width: int, streaks: Streaks) -> np.ndarray:
    """Sum of all streaks, anti-aliased, as a ``(height, width)`` float32 picture; what lies outside is cut off.

    Each streak is a bar: a trapezoid across (its edges at least one pixel soft), constant along with tapered ends.
    Its sum over the picture is length * width * brightness * (1 - taper / 2), to 3 % (soft edges at 45 degrees: 8 %).
    """
    tangent = np.tan(np.radians(streaks.angle))
    cosine = np.cos(np.radians(streaks.angle))
    half_rows = 0.5 * streaks.length * cosine
    half_columns, _ = _profile(streaks, cosine)
    # Only what touches the picture costs anything.
    first = np.clip(np.ceil(streaks.y - half_rows), 0, None)
    rows = np.clip(np.floor(streaks.y + half_rows), None, height - 1) - first + 1
    reach = half_rows * np.abs(tangent) + half_columns
    seen = (rows > 0) & (np.abs(streaks.x - (width - 1) / 2) < width / 2 + reach)
    # A frame of one pixel takes what lies outside.
    canvas = np.zeros((height + 2) * (width + 2), dtype=np.float32)
    order = np.flatnonzero(seen)
    if order.size == 0:
        return np.zeros((height, width), dtype=np.float32)
    order = order[np.argsort(rows[order], kind="stable")]  # alike lengths share a block, so little is padded
    per_streak = int(rows[order[-1]]) * (2 * math.ceil(half_columns[order].max()) + 1)
    block = max(1, min(POINTS_AT_ONCE // per_streak, max(-(-order.size // 4), 32)))
    for start in range(0, order.size, block):
        chosen = order[start : start + block]
        lines = first[chosen, None] + np.arange(int(rows[chosen[-1]]))
        index, value = _rasterise(height, width, Streaks(*(part[chosen] for part in streaks)), lines)
        np.add.at(canvas, index, value)  # both float32: with mixed types it is 30 times slower
    return np.ascontiguousarray(canvas.reshape(height + 2, width + 2)[1:-1, 1:-1])


def _profile(s: Streaks, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half the width that has any light, and the width of the fading edge, both along a row of pixels.

    Along a row, so that each row of a sharp streak adds up to exactly its width, whatever the angle. A bar narrower
    than a pixel is drawn one pixel wide and fainter, which is what a sensor makes of it.
    """
    edge = np.maximum(s.softness * s.width / cosine, 1.0)
    return 0.5 * (np.maximum(s.width, 1.0) / cosine + edge), edge


def _rasterise(height: int, width: int, s: Streaks, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices into the framed canvas, and values, of N streaks.

    ``lines``: ``(N, R)`` numbers of rows; on each, the columns around the middle line of the streak are computed.
    """
    cosine = np.cos(np.radians(s.angle))
    slope = np.tan(np.radians(s.angle))
    parts = (s.x, s.y, s.length, s.width, s.brightness, s.taper, cosine, slope, *_profile(s, cosine))
    x, y, length, thick, brightness, taper, cosine, slope, half_width, edge = (
        part.astype(np.float32)[:, None, None] for part in parts
    )
    reach_x = math.ceil(float(half_width.max()))
    offsets = np.arange(-reach_x, reach_x + 1)
    # Per row:
    rows = lines.astype(np.float32)[:, :, None]
    middle = x + (rows - y) * slope
    column = np.rint(middle)
    along = np.clip((0.5 * length - np.abs(rows - y) / cosine) / np.maximum(0.5 * length * taper, 1.0), 0, 1)
    along = along * along * (3 - 2 * along) * (brightness * np.minimum(thick, 1))
    start = (np.minimum(lines[:, :, None], height).astype(np.int64) + 1) * (width + 2) + 1
    # Per point, in as few passes as there can be: all the time goes here.
    value = offsets.astype(np.float32) - (middle - column)
    np.abs(value, out=value)
    np.subtract(half_width, value, out=value)
    value *= 1 / edge
    np.minimum(value, 1, out=value)
    value *= along
    index = column.astype(np.int64) + offsets
    np.maximum(index, -1, out=index)
    np.minimum(index, width, out=index)
    index += start
    inside = value > 0
    return index[inside], value[inside]
