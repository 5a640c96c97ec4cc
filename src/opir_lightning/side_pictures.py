"""What `restore` writes beside a result on request: the comparison and the expected error, of pictures of any size.

Each of them is made some rows at a time: input, result and this together would fill the memory with a large picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from opir_lightning.memory import Allocate
from opir_lightning.picture_files import Picture, write_map, write_picture
from opir_lightning.picture_files.png_chunks import COLOUR, text

GAP = 8  # pixels, white
ROWS_AT_ONCE = 512  # between two calls of ``progress``


def write_comparison(
    picture: Picture, after: np.ndarray, path: Path, *, allocate: Allocate, progress: Callable[[], None]
) -> None:
    """Write two pictures side by side, with a white gap; in the colours of the first, without transparency.

    Args:
        picture: on the left.
        after: on the right, pixels as those of the picture.
        path: of the PNG file.
        allocate: makes the picture, as ``numpy.empty`` does.
        progress: called every now and then, to give memory back.

    Raises:
        OSError: the file cannot be written.
    """
    before = picture.pixels
    height, width, _ = before.shape
    both = allocate((height, 2 * width + GAP, 3), before.dtype)
    for rows in _bands(height):
        both[rows, :width] = before[rows]
        both[rows, width : width + GAP] = np.iinfo(before.dtype).max
        both[rows, width + GAP :] = after[rows]
        progress()
    profile = {name: value for name, value in picture.metadata.items() if name == "icc-profile-data"}
    colours = tuple(chunk for chunk in picture.chunks if chunk.kind in COLOUR)
    write_picture(Picture(both, grey=picture.grey, chunks=colours, metadata=profile), path, progress=progress)


def write_uncertainty(
    values: np.ndarray, numbers: Path, picture: Path, *, allocate: Allocate, progress: Callable[[], None]
) -> None:
    """Write the expected error as numbers and as a picture to see, which says what its colours mean.

    Args:
        values: ``(H, W)`` float32, in image units.
        numbers: path of the TIFF file.
        picture: path of the PNG file.
        allocate, progress: as in `write_comparison`.

    Raises:
        OSError: a file cannot be written.
    """
    import torch  # the command that imports this module answers --help at once

    from opir_lightning.pictures import UNCERTAINTY_TOP, to_pixels

    write_map(values, numbers, progress=progress)
    colours = allocate((*values.shape, 3), np.uint8)
    for rows in _bands(len(values)):
        colours[rows] = to_pixels(torch.from_numpy(values[rows])[None])
        progress()
    meaning = text("Description", f"Expected absolute error: dark is 0, brightest {UNCERTAINTY_TOP} and more.")
    write_picture(Picture(colours, chunks=(meaning,)), picture, progress=progress)


def _bands(height: int) -> list[slice]:
    return [slice(top, top + ROWS_AT_ONCE) for top in range(0, height, ROWS_AT_ONCE)]
