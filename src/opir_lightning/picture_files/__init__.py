"""Picture files as people have them: every kind of pixels in, and what has to survive a restoration kept.

libvips reads and writes: it keeps 16 bits, profiles and EXIF data of all kinds of files. Pillow takes what libvips does
not: BMP, and HEIC where its plugin ``pillow-heif`` is installed. Large pictures lie in temporary files, not in memory.
"""

from opir_lightning.picture_files.kinds import FORMATS, SUFFIXES, UNSUPPORTED, Picture
from opir_lightning.picture_files.reading import LARGE, read_picture, to_rgb
from opir_lightning.picture_files.writing import EIGHT_BIT, WITHOUT_ALPHA, check_colours, write_map, write_picture

__all__ = [
    "EIGHT_BIT",
    "FORMATS",
    "LARGE",
    "SUFFIXES",
    "UNSUPPORTED",
    "WITHOUT_ALPHA",
    "Picture",
    "check_colours",
    "read_picture",
    "to_rgb",
    "write_map",
    "write_picture",
]
