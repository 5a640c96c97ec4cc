"""What is written as a picture is read back: its pixels, and what else the format can hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ImageCms

from opir_lightning.picture_files import EIGHT_BIT, FORMATS, WITHOUT_ALPHA, Picture, read_picture, write_picture

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SUFFIXES = (".png", ".tif", ".bmp", ".jpg", ".webp", ".avif")
WITHOUT_LOSS = (".png", ".tif", ".bmp")


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    """Of noise in a narrow band around a ramp: a format with a loss has something to lose, and not everything."""
    import pyvips

    deep, grey, alpha = (draw(st.booleans()) for _ in range(3))
    height, width = (draw(st.integers(1, 40)) for _ in range(2))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    ramp = np.linspace(0.2, 0.7, width)[None, :, None] + rng.uniform(0, 0.1, (height, width, 1 if grey else 3))
    kind, top = (np.uint16, 65535) if deep else (np.uint8, 255)
    pixels = np.ascontiguousarray(np.broadcast_to((ramp * top).astype(kind), (height, width, 3)))
    metadata = {}
    if draw(st.booleans()) and not grey:  # a file of grey with a profile of colours would be refused by many
        metadata["icc-profile-data"] = (pyvips.GValue.blob_type, PROFILE)
    if draw(st.booleans()):
        resolution = draw(st.floats(1.5, 40))
        metadata |= dict.fromkeys(("xres", "yres"), (pyvips.GValue.gdouble_type, resolution))
    shares = rng.integers(0, top + 1, (height, width)).astype(kind) if alpha else None
    return Picture(pixels, shares, grey, metadata)


ONE_GREY_PIXEL = Picture(np.full((1, 1, 3), 67, np.uint8), grey=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@example(picture=ONE_GREY_PIXEL)
@given(picture=pictures())
def test_a_picture_comes_back_as_its_format_can_hold_it(suffix, picture):
    kind = FORMATS[suffix][0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        write_picture(picture, path)
        assert [found.name for found in Path(folder).iterdir()] == [path.name]
        back = read_picture(path)
    values, alpha = picture.pixels, picture.alpha
    if kind in EIGHT_BIT and values.dtype == np.uint16:
        values = np.rint(values / 257).astype(np.uint8)
        alpha = None if alpha is None else np.rint(alpha / 257).astype(np.uint8)
    if alpha is not None and kind in WITHOUT_ALPHA:
        top = np.iinfo(values.dtype).max
        share = alpha[..., None] / top
        values, alpha = np.rint(values * share + top * (1 - share)).astype(values.dtype), None
    assert back.pixels.shape == values.shape
    assert back.pixels.dtype == values.dtype
    assert (back.alpha is None) == (alpha is None)
    assert back.grey == picture.grey or suffix in (".webp", ".avif")  # as which grey comes back in three colours
    off = np.abs(back.pixels.astype(int) - values.astype(int))
    if suffix in WITHOUT_LOSS:
        flattened = picture.alpha is not None and alpha is None
        assert off.max() <= (2 if flattened else 0)  # white is added after and before the rounding to 8 bits
        assert alpha is None or np.array_equal(back.alpha, alpha)
    elif picture.alpha is None:  # colours that nobody sees may be anything
        assert off.mean() <= 8 * (257 if values.dtype == np.uint16 else 1)
    if suffix != ".bmp":
        profile = picture.metadata.get("icc-profile-data")
        assert (profile is None) or back.metadata["icc-profile-data"][1] == PROFILE
    if suffix in (".png", ".jpg", ".tif", ".bmp") and "xres" in picture.metadata:
        assert back.metadata["xres"][1] == pytest.approx(picture.metadata["xres"][1], rel=0.02, abs=0.05)
