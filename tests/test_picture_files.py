"""What picture files carry besides their pixels, and what must not be taken for a picture of colours."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from opir_lightning.errors import UserError
from opir_lightning.picture_files import Picture, read_picture, write_map, write_picture
from opir_lightning.picture_files.exif import Entry, read_entries
from opir_lightning.picture_files.png_chunks import Inserter, text
from opir_lightning.side_pictures import write_comparison

EXPOSURE, PLACE = 34665, 34853
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="Ort"/></x:xmpmeta>'


def pixels(channels: int = 3, *, height: int = 24, width: int = 36) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (height, width, channels), dtype=np.uint8)


def exif() -> Image.Exif:
    data = Image.Exif()
    data[270], data[271], data[306], data[33432] = "A house", "Camera", "2024:05:06 07:08:09", "A. Photographer"
    data.get_ifd(EXPOSURE).update({33434: 0.004, 36867: "2024:05:06 07:08:09", 37386: 35.0})
    data.get_ifd(PLACE).update({1: "N", 2: (59.0, 26.0, 14.0)})
    return data


def said(path: Path) -> dict[int, object]:
    """What a file says of its picture, in Pillow's view."""
    with Image.open(path) as image:
        data = image.getexif()
        first = {tag: value for tag, value in data.items() if tag in (270, 271, 306, 33432)}
        exposure, place = data.get_ifd(EXPOSURE), data.get_ifd(PLACE)
        return {**first, 33434: float(exposure[33434]), 36867: exposure[36867], **place}


ALL = {270: "A house", 271: "Camera", 306: "2024:05:06 07:08:09", 33432: "A. Photographer"}
ALL |= {33434: 0.004, 36867: "2024:05:06 07:08:09", 1: "N", 2: (59.0, 26.0, 14.0)}


def tiff(data: Image.Exif, order: str) -> bytes:
    """A TIFF of one grey pixel with these data, which Pillow writes in JPEG files alone, and this order of bytes."""
    directory = Image.Exif()
    directory.endian = order
    directory.update({256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1, **data})
    for tag in (EXPOSURE, PLACE):
        directory.get_ifd(tag).update(data.get_ifd(tag))
    block = directory.tobytes(12).removeprefix(b"Exif\0\0")[8:]
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 12) + b"\x80\0\0\0" + block


@pytest.mark.parametrize("source", ["a.jpg", "a.png", "a.webp", "little.tif", "big-endian.tif"])
@pytest.mark.parametrize("target", ["b.jpg", "b.png", "b.webp", "b.tif"])
def test_exif_data_go_from_every_kind_of_file_to_every_other(tmp_path, source, target):
    given, path = tmp_path / source, tmp_path / target
    if given.suffix == ".tif":
        given.write_bytes(tiff(exif(), "<" if source == "little.tif" else ">"))
    else:
        Image.fromarray(pixels()).save(given, exif=exif())
    write_picture(read_picture(given), path)
    assert said(path) == ALL


def test_a_written_tiff_keeps_its_pixels_and_profile_beside_exif_data(tmp_path, monkeypatch):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=exif(), icc_profile=profile, dpi=(240, 240))
    picture = read_picture(tmp_path / "a.png")
    for largest in (2**31, 100):  # the second as if it were too large for a usual one
        monkeypatch.setattr("opir_lightning.picture_files.writing.LARGEST_USUAL_TIFF", largest)
        path = tmp_path / f"{largest}.tif"
        write_picture(picture, path)
        assert path.read_bytes()[2] == (43 if largest == 100 else 42)
        back = read_picture(path)
        write_picture(back, tmp_path / "again.jpg")  # of a big one, Pillow reads the first directory alone
        assert said(tmp_path / "again.jpg") == ALL
        assert np.array_equal(back.pixels, pixels())
        assert back.metadata["icc-profile-data"][1] == profile
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((240, 240), abs=0.1)


def test_a_thumbnail_and_turns_of_the_picture_as_it_was_are_not_kept(tmp_path):
    small = io.BytesIO()
    Image.fromarray(pixels(height=8, width=12)).save(small, "JPEG")
    data = exif()
    data[274], data.endian = 6, "<"
    block = data.tobytes()
    # Pillow writes no second directory: here is one behind the first, with a thumbnail.
    count = struct.unpack_from("<H", block, 14)[0]
    link, end = 6 + 8 + 2 + 12 * count, len(block) - 6
    second = struct.pack("<HHHLLHHLLL", 2, 513, 4, 1, end + 30, 514, 4, 1, len(small.getvalue()), 0)
    block = block[:link] + struct.pack("<L", end) + block[link + 4 :] + second + small.getvalue()
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=block, xmp=XMP)
    assert pyvips.Image.new_from_file(str(tmp_path / "a.jpg")).get_typeof("jpeg-thumbnail-data") != 0
    for name in ("b.jpg", "b.png", "b.tif"):
        write_picture(read_picture(tmp_path / "a.jpg"), tmp_path / name)
        assert small.getvalue()[20:60] not in (tmp_path / name).read_bytes()
        with Image.open(tmp_path / name) as image:
            assert image.size == (24, 36)
            assert image.getexif().get(274, 1) == 1
            packet = image.info["xmp"]
            packet = packet if isinstance(packet, bytes) else packet.encode()
            assert packet == XMP.replace(b'Orientation="6"', b'Orientation="1"')


def test_a_channel_that_is_no_transparency_is_named(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(pixels(4)).save(path)
    assert read_picture(path).alpha is not None
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<HHL", 338, 3, 1))
    content[place + 8 : place + 10] = bytes(2)  # 0: unspecified, as a saved selection is
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif': besides its colours it holds a channel that is no transparency"):
        read_picture(path)


def png(path: Path, *chunks: tuple[bytes, bytes], **options: object) -> Path:
    """A PNG file with these chunks before its pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels()).save(stream, "PNG", **options)
    content = stream.getvalue()
    block = b"".join(
        struct.pack(">L", len(value)) + kind + value + struct.pack(">L", zlib.crc32(kind + value))
        for kind, value in chunks
    )
    path.write_bytes(content[:33] + block + content[33:])
    return path


LINEAR = (b"gAMA", struct.pack(">L", 100_000))
BROADCAST = (b"cICP", bytes([9, 16, 0, 1]))
USUAL = [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">L", 45455))]


def test_a_png_keeps_how_its_colours_are_meant_and_its_texts(tmp_path):
    texts = [(b"tEXt", b"Title\0Ein H\xe4uschen"), (b"iTXt", "Author\0\0\0\0\0Ægir 日本".encode())]
    for number, colours in enumerate(([LINEAR], [BROADCAST], USUAL)):
        path = png(tmp_path / f"{number}.png", *colours, *texts)
        write_picture(read_picture(path), tmp_path / "b.png")
        content = (tmp_path / "b.png").read_bytes()
        for kind, value in (*colours, *texts):
            assert content.count(kind + value) == 1
            assert content.index(kind + value) < content.index(b"IDAT")
        with Image.open(tmp_path / "b.png") as image:
            image.load()
            assert image.text == {"Title": "Ein Häuschen", "Author": "Ægir 日本"}
            assert np.array_equal(np.asarray(image), pixels())


def test_colours_that_only_a_png_can_tell_are_not_written_as_something_else(tmp_path):
    for chunk, kind in ((LINEAR, "gAMA"), (BROADCAST, "cICP"), ((b"cHRM", struct.pack(">8L", *[30000] * 8)), "cHRM")):
        picture = read_picture(png(tmp_path / "a.png", chunk))
        with pytest.raises(UserError, match=f"not those of sRGB .by its chunk {kind}., which only a PNG can keep"):
            write_picture(picture, tmp_path / "b.jpg")
        assert not (tmp_path / "b.jpg").exists()
    for chunks in (USUAL, [LINEAR, (b"sRGB", b"\0")]):
        write_picture(read_picture(png(tmp_path / "a.png", *chunks)), tmp_path / "b.jpg")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile = read_picture(png(tmp_path / "a.png", LINEAR, icc_profile=profile))
    write_picture(with_profile, tmp_path / "b.jpg")  # the profile counts, and goes along
    write_picture(with_profile, tmp_path / "c.png")
    assert b"gAMA" not in (tmp_path / "c.png").read_bytes()


def test_xmp_data_are_found_in_a_png_by_others(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", xmp=XMP)
    write_picture(read_picture(tmp_path / "a.jpg"), tmp_path / "b.png")
    write_picture(read_picture(tmp_path / "b.png"), tmp_path / "c.png")
    for name in ("b.png", "c.png"):
        with Image.open(tmp_path / name) as image:
            assert image.info["xmp"] == XMP.replace(b'Orientation="6"', b'Orientation="1"')
        assert (tmp_path / name).read_bytes().count(b"adobe.xmp") == 1


def test_animations_are_told_by_their_chunks_and_not_by_their_words(tmp_path):
    still = png(tmp_path / "still.png", (b"tEXt", b"Comment\0about acTL chunks"))
    assert read_picture(still).pixels.shape == (24, 36, 3)
    frames = {"save_all": True, "append_images": [Image.new("RGB", (36, 24), "red")]}
    for words in (b"all about IDAT", b"x" * 70_000):
        with pytest.raises(UserError, match="it is an animation"):
            read_picture(png(tmp_path / "moving.png", (b"tEXt", b"Comment\0" + words), **frames))


def test_texts_beyond_all_measure_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("opir_lightning.picture_files.png_chunks.MOST_BYTES", 100)
    path = png(tmp_path / "a.png", *[(b"tEXt", b"Comment\0" + b"x" * 40)] * 3)
    with pytest.raises(UserError, match="its texts are more than 1000, or than 100 bytes"):
        read_picture(path)


def test_a_png_of_a_great_many_texts_is_refused_and_letters_of_any_kind_are_none_of_our_business(tmp_path):
    with pytest.raises(UserError, match="its texts are more than 1000"):
        read_picture(png(tmp_path / "a.png", *[(b"tEXt", b"a\0b")] * 1001))
    path = png(tmp_path / "b.png", (b"tEXt", b"\xc4hnlich\0ja"))
    write_picture(read_picture(path), tmp_path / "c.png")
    assert b"tEXt\xc4hnlich\0ja" in (tmp_path / "c.png").read_bytes()


def test_directories_that_lead_to_themselves_and_entries_that_share_values_cost_nothing(tmp_path):
    path = tmp_path / "a.tif"
    pointers = b"".join(struct.pack("<HHLL", 34665, 4, 1, 8) for _ in range(900))
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", 900) + pointers + bytes(4))
    assert read_entries(path) == [Entry(34665, 4, [])]
    shared = b"".join(struct.pack("<HHLL", 315, 2, 2**19, 8 + 2 + 12 * 900 + 4) for _ in range(900))
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", 900) + shared + bytes(4) + b"x" * 2**19)
    assert [(entry.tag, len(entry.values)) for entry in read_entries(path)] == [(315, 2**19)]
    # In a directory of the exposure any tag may be, so there it is the sum that ends it.
    many = b"".join(struct.pack("<HHLL", tag, 7, 2**19, 26 + 12 * 900 + 6) for tag in range(900))
    content = b"II*\0\x08\0\0\0" + struct.pack("<HHHLLL", 1, 34665, 4, 1, 26, 0)
    path.write_bytes(content + struct.pack("<H", 900) + many + bytes(4) + b"x" * 2**19)
    ((_, _, below),) = read_entries(path)
    assert sum(len(entry.values) for entry in below) < 2**24


def test_directories_in_directories_end_somewhere(tmp_path):
    path = tmp_path / "a.tif"
    chain = b"".join(struct.pack("<HHHLLL", 1, 34665, 4, 1, 8 + 18 * (place + 1), 0) for place in range(5000))
    path.write_bytes(b"II*\0\x08\0\0\0" + chain)
    entry, depth = read_entries(path), 0
    while entry:
        entry, depth = entry[0].values, depth + 1
    assert depth == 4


def test_a_pointer_that_leads_nowhere_costs_nothing_else(tmp_path):
    path = tmp_path / "a.tif"
    entries = [(34665, 4, 1, 2**31), (34853, 4, 2, 8), (315, 2, 4, int.from_bytes(b"abc\0", "little"))]
    block = b"".join(struct.pack("<HHLL", *entry) for entry in sorted(entries))
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + block + bytes(4))
    assert [entry for entry in read_entries(path) if entry.tag == 315] == [Entry(315, 2, b"abc\0")]


def test_a_png_that_finds_no_room_says_so():
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        inserter = Inserter(full, [text("Title", "x")])
        assert inserter.write(bytes(100)) == -1
    assert "No space left" in str(inserter.error)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.webp", "map.tiff"])
def test_an_interruption_while_a_large_file_is_written_is_one(tmp_path, name):
    told = []

    def progress() -> None:
        told.append(name)
        raise KeyboardInterrupt

    large = np.zeros((3000, 2000, 3), np.uint8)
    write, what = (
        (write_map, large[..., 0].astype(np.float32)) if name == "map.tiff" else (write_picture, Picture(large))
    )
    with pytest.raises(KeyboardInterrupt):
        write(what, tmp_path / name, progress=progress)
    assert told
    assert not list(tmp_path.iterdir())


def test_an_interruption_while_a_part_of_a_png_is_written_is_kept():
    class Interrupted(io.BytesIO):
        def write(self, data: bytes) -> int:
            raise KeyboardInterrupt

    inserter = Inserter(Interrupted(), [])
    assert inserter.write(bytes(100)) == -1
    assert isinstance(inserter.error, KeyboardInterrupt)


def test_a_comparison_has_the_colours_of_its_picture(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", icc_profile=profile, exif=exif())
    Image.fromarray(pixels()[..., 0]).save(tmp_path / "grey.png", icc_profile=grey_profile(1.8))
    for name, mode, kept in (("a.jpg", "RGB", profile), ("grey.png", "L", grey_profile(1.8))):
        picture = read_picture(tmp_path / name)
        path = tmp_path / "compare.png"
        write_comparison(picture, picture.pixels, path, allocate=np.empty, progress=lambda: None)
        with Image.open(path) as image:
            assert (image.mode, image.size) == (mode, (80, 24))
            assert image.info["icc_profile"] == kept
            assert 271 not in image.getexif()
    linear = read_picture(png(tmp_path / "linear.png", LINEAR, (b"tEXt", b"Title\0x")))
    write_comparison(linear, linear.pixels, path, allocate=np.empty, progress=lambda: None)
    assert b"".join(LINEAR) in path.read_bytes()
    assert b"tEXt" not in path.read_bytes()


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of grey values with this gamma, as small as can be."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">L", 5) + b"grey\0" + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3l", 63190, 65536, 54061),
        b"kTRC": b"curv" + bytes(4) + struct.pack(">LH", 1, round(gamma * 256)) + bytes(2),
    }
    place, table, block = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">2L", place + len(block), len(value))
        block += value
    size = place + len(block)
    head = struct.pack(">L4s4s4s4s4s", size, b"lcms", b"\x02\x10\0\0", b"mntr", b"GRAY", b"XYZ ") + bytes(12) + b"acsp"
    head = (head + bytes(28)).ljust(68, b"\0") + struct.pack(">3l", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">L", len(tags)) + table + block


def test_grey_with_a_profile_of_its_own_is_shown_alike_where_there_is_no_grey(tmp_path):
    ramp = np.tile(np.linspace(20, 235, 64).astype(np.uint8), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=grey_profile(1.8))
    picture = read_picture(tmp_path / "a.png")
    assert picture.grey
    assert "icc-profile-data" in picture.metadata
    write_picture(picture, tmp_path / "b.webp", quality=100)
    back = read_picture(tmp_path / "b.webp")
    assert "icc-profile-data" not in back.metadata
    light = (ramp / 255.0) ** 1.8  # and back by the curve of sRGB
    want = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(back.pixels[..., 0] - want).mean() < 2
    assert np.abs(want - ramp).mean() > 8
    write_picture(picture, tmp_path / "b.jpg")
    assert "icc-profile-data" in read_picture(tmp_path / "b.jpg").metadata


def test_resolution_stays_in_a_bmp(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.bmp", dpi=(300, 300))
    write_picture(read_picture(tmp_path / "a.bmp"), tmp_path / "b.bmp")
    write_picture(read_picture(tmp_path / "b.bmp"), tmp_path / "c.png")
    for name in ("b.bmp", "c.png"):
        with Image.open(tmp_path / name) as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_lossless_webp_stays_without_loss_unless_a_quality_is_asked_for(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(pixels()).save(tmp_path / "more.webp", lossless=True, exif=exif(), xmp=XMP)
    Image.fromarray(pixels()).save(tmp_path / "lossy.webp", quality=90, exif=exif())
    assert read_picture(tmp_path / "more.webp").lossless
    assert not read_picture(tmp_path / "lossy.webp").lossless
    picture = read_picture(tmp_path / "a.webp")
    write_picture(picture, tmp_path / "b.webp")
    assert np.array_equal(read_picture(tmp_path / "b.webp").pixels, pixels())
    write_picture(picture, tmp_path / "c.webp", quality=80)
    assert not np.array_equal(read_picture(tmp_path / "c.webp").pixels, pixels())
    write_picture(read_picture(tmp_path / "lossy.webp"), tmp_path / "d.webp")
    assert b"VP8L" not in (tmp_path / "d.webp").read_bytes()


def test_avif_files_of_more_than_8_bits_stay_so_and_white_is_white(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None], (64, 1, 3))
    for bits in (10, 12):
        pyvips.Image.new_from_array(ramp).heifsave(
            str(tmp_path / "a.avif"), compression="av1", Q=95, bitdepth=bits, subsample_mode="off"
        )
        picture = read_picture(tmp_path / "a.avif")
        assert picture.pixels.max() == 65535
        write_picture(picture, tmp_path / "b.avif", quality=95)
        back = read_picture(tmp_path / "b.avif").pixels
        assert back.dtype == np.uint16
        assert np.abs(back.astype(int) - ramp).mean() < 100  # of 8 bits, a level has 257
    write_picture(Picture(pixels()), tmp_path / "c.avif")
    assert read_picture(tmp_path / "c.avif").pixels.dtype == np.uint8
