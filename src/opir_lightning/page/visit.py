"""What a visitor of the page can do, without the page: restore an upload, and look at one of its pixels.

Between the two nothing is kept but the name of the upload: any number of visitors needs the memory of one restoration.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image

from opir_lightning.errors import UserError
from opir_lightning.picture_files import Picture, read_picture, write_picture
from opir_lightning.pictures import eight_bit, operator_picture, scaled_down, uncertainty_overlay

if TYPE_CHECKING:
    from opir_lightning.inference import Progress
    from opir_lightning.restorer import Restorer

LONGEST = 2048  # pixels of what is shown; the result for download has its full size
WORTH_NAMING = 0.1  # share from which on a task is named beside the likeliest one


class Seen(NamedTuple):
    """What the picture that a visitor looks at was made from.

    Attributes:
        upload: its file.
        task, strength: that it was restored with.
        scale: pixels of the upload per pixel of what is shown.
    """

    upload: Path
    task: str
    strength: float
    scale: float


class View(NamedTuple):
    """Files to show for a restoration, and words about it.

    Attributes:
        before, after, uncertainty: JPEG files of one size, at most `LONGEST` on the longer side.
        result: of full size, in the format of the upload.
        words: what the picture seems to suffer from, and how wrong the result is expected to be.
        seen: for `look_at`.
    """

    before: Path
    after: Path
    uncertainty: Path
    result: Path
    words: str
    seen: Seen


def restore_upload(
    restorer: Restorer,
    upload: Path,
    *,
    task: str,
    strength: float,
    folder: Path,
    most_pixels: int,
    progress: Progress | None = None,
) -> View:
    """Restore a file into a new folder below ``folder``, whose name nobody can guess.

    Args:
        restorer: with the model.
        upload: file of a picture.
        task: name of the degradation, or ``"auto"``.
        strength: in [0, 1].
        folder: for the results.
        most_pixels: a larger picture is refused before it is decoded.
        progress: called with (tiles done, tiles in all).

    Raises:
        UserError: the file cannot be read as a picture or is too large; the message names it without its folder.
    """
    picture = _read(upload, most_pixels)
    refined, uncertainty = restorer.restore_pixels(picture.pixels, task=task, strength=strength, progress=progress)
    assert uncertainty is not None
    target = folder / secrets.token_hex(16)
    result = target / f"{upload.stem}_restored{upload.suffix}"
    write_picture(picture._replace(pixels=refined), result)
    before, after = (eight_bit(scaled_down(pixels, LONGEST)) for pixels in (picture.pixels, refined))
    shown = torch.from_numpy(scaled_down(uncertainty, LONGEST))[None]
    profile = {name: value for name, value in picture.metadata.items() if name == "icc-profile-data"}
    files = [target / f"{name}.jpg" for name in ("before", "after", "uncertainty")]
    for file, pixels in zip(files[:2], (before, after), strict=True):
        write_picture(Picture(pixels, grey=picture.grey, metadata=profile), file)
    overlay = uncertainty_overlay(after, shown)  # in colours, for which a grey picture's profile says nothing
    write_picture(Picture(overlay, metadata={} if picture.grey else profile), files[2])
    words = _words(restorer.estimate(picture.pixels), picture.pixels.shape, float(uncertainty.mean()))
    seen = Seen(upload, task, strength, max(refined.shape[:2]) / max(after.shape[:2]))
    return View(files[0], files[1], files[2], result, words, seen)


def look_at(restorer: Restorer, seen: Seen, x: int, y: int, *, most_pixels: int) -> tuple[Image.Image, str]:
    """The operators at a pixel of what is shown, as a picture and in words.

    Args:
        restorer: that made it.
        seen: what the visitor looks at.
        x: column of the pixel in the shown picture; places beyond the border count as on it.
        y: row of the pixel.
        most_pixels: as in `restore_upload`.

    Raises:
        UserError: the upload is not there any more.
    """
    pixels = _read(seen.upload, most_pixels).pixels
    row, column = (
        min(max(int((place + 0.5) * seen.scale), 0), length - 1)
        for place, length in zip((y, x), pixels.shape[:2], strict=True)
    )
    operators = restorer.operators_at(pixels, row, column, task=seen.task, strength=seen.strength)
    lines = [f"Column {column}, row {row}, for red, green and blue:"]
    for number, (kernel, offset) in enumerate(operators, 1):
        sums, offsets = (", ".join(f"{value:.3f}" for value in row) for row in (kernel.sum((1, 2)), offset))
        lines.append(f"stage {number}: the taps add up to {sums}; the offsets are {offsets}")
    return operator_picture(operators), "\n".join(lines)


def _read(upload: Path, most_pixels: int) -> Picture:
    try:
        return read_picture(upload, most_pixels=most_pixels)
    except UserError as error:
        raise UserError(str(error).replace(f"{upload.parent}{os.sep}", "")) from error


def _words(shares: dict[str, float], shape: tuple[int, ...], expected: float) -> str:
    likely = [name for name, share in shares.items() if share >= WORTH_NAMING] or list(shares)[:1]
    named = ", ".join(f"{name.replace('_', ' ')} {shares[name]:.0%}" for name in likely)
    return (
        f"{shape[1]}x{shape[0]} pixels. It looks like: {named}.\n"
        f"Expected error {expected:.3f} on average, where 1 is the way from black to white."
    )
