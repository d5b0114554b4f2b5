"""What decoding may cost: each file that would take more than its pixels say is refused by its headers."""

import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image

from asyncembed.errors import InputError
from asyncembed.images.decode import DecodeOptions, decode
from asyncembed.images.image_limits import MAX_SCANNED_PIXELS, DecodingMemory, readable_formats
from asyncembed.images.inputs import READ_FORMATS, PillowImage, Unreadable
from tests.support.images import encoded, picture

PLAIN = DecodeOptions()


def refused(data: object, reason: str, options: DecodeOptions = PLAIN) -> None:
    with pytest.raises(InputError, match=reason):
        decode(data, options)


# ---------------------------------------------------------------- formats


def test_only_some_formats_are_read() -> None:
    assert set(readable_formats()) | {"HEIF"} == set(READ_FORMATS)
    assert "EPS" not in READ_FORMATS
    for kind, mode in (("PCX", "RGB"), ("SGI", "RGB"), ("TGA", "RGB"), ("SPIDER", "F"), ("XBM", "1")):
        refused(encoded(picture(20, 20, mode), kind), "not an image, or of a kind that is not read")


@pytest.mark.parametrize("kind", [name for name in READ_FORMATS if name != "HEIF"])
def test_each_format_that_is_named_is_read(kind: str) -> None:
    assert decode(encoded(picture(32, 32), kind), PLAIN).size == (32, 32)


def test_a_page_of_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    page = encoded(picture(30, 30), "EPS")
    assert page.startswith(b"%!PS")
    refused(page, "not read")
    path = tmp_path / "a.eps"
    path.write_bytes(page)
    refused(str(path), "not read")
    opened = Image.open(BytesIO(page))
    refused(PillowImage(opened), "not read")
    assert PillowImage(opened).__reduce__() == (bytes, (page,))
    opened.fp = None
    kind, (reason,) = PillowImage(opened).__reduce__()
    assert kind is Unreadable
    assert "EPS images are not read" in str(reason)
    assert not (tmp_path / "started").exists()


# ---------------------------------------------------------------- scans


def _progressive(size: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("RGB", (size, size), (9, 99, 199)), progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


@pytest.mark.slow
def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    refused(_progressive(3000, 1000), "10.. scans")
    refused(_progressive(500, 20_000), "200.. scans")
    assert decode(_progressive(300, 30), PLAIN).size == (300, 300)
    assert 20 * PLAIN.max_pixels < MAX_SCANNED_PIXELS


@pytest.mark.slow
def test_scans_are_counted_wherever_they_hide() -> None:
    """In a sequential JPEG with a scan for each component, in one with odd markers, and in a TIFF."""
    data = encoded(Image.new("RGB", (3000, 3000)), progressive=True)
    scans = b"\xff\xda\0\x08\1\1\0\0\x3f\0\0" * 1000
    sequential = bytearray(data.replace(b"\xff\xc2", b"\xff\xc0", 1))
    sequential[sequential.find(b"\xff\xda") + 4] = 1
    refused(bytes(sequential[:-2]) + scans, "scans")
    filled = data.replace(b"\xff\xdb", b"\xff\xff\xdb", 1)
    refused(filled[:-2] + scans, "scans")
    tiff = encoded(Image.new("RGB", (3000, 3000)), "TIFF", compression="jpeg")
    assert decode(tiff, PLAIN).size == (3000, 3000)
    refused(tiff + scans, "scans")


def test_an_ordinary_jpeg_is_not_searched_for_scans() -> None:
    """Which would take as long as a part of decoding it."""
    data = encoded(picture(200, 200), quality=95)
    looked_at: list[int] = []

    class Watched(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            looked_at.append(size or 0)
            return super().read(size)

    from asyncembed.images.image_limits import check_opened

    with Image.open(BytesIO(data)) as image:
        check_opened(image, Watched(data), PLAIN.max_pixels)
    assert sum(looked_at) < 200


# ---------------------------------------------------------------- sizes that a file does not say at its front


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(b"\0" * (height * (1 + 3 * width)))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _icon(picture_in_it: bytes) -> bytes:
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture_in_it), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + picture_in_it


def test_an_icon_is_as_large_as_the_picture_in_it() -> None:
    refused(_icon(_png(2000, 2000)), "icon with a picture of 2000x2000")
    bitmap = struct.pack("<IiiHHIIiiII", 40, 9000, -18_000, 1, 8, 1, 0, 0, 0, 0, 0)
    refused(_icon(bitmap), "icon with a picture of 9000x18000")
    refused(_icon(struct.pack("<IHHHH", 12, 60_000, 60_000, 1, 8).ljust(30)), "icon with a picture of 60000x60000")
    assert decode(encoded(picture(64, 64), "ICO"), PLAIN).size == (64, 64)


def test_a_tile_may_not_be_larger_than_an_image() -> None:
    fields = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: 8, 325: 50}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    data = b"II*\0" + struct.pack("<I", 58) + bytes(50) + struct.pack("<H", len(fields)) + directory + bytes(4)
    refused(data, "tiles of 20000x20000")


@pytest.mark.parametrize("kind", [b"P3", b"P6"])
def test_what_pillow_decodes_in_python_is_small(kind: bytes) -> None:
    """Plain PPM, and PPM with another range than that of a byte: two and a half seconds for a million pixels."""
    values = b"1 " if kind == b"P3" else b"\1"
    small, large = (kind + b"\n%d 10\n254\n" % width + values * width * 30 for width in (10, 300_000))
    assert decode(small, PLAIN).size == (10, 10)
    refused(large, "too long to decode")


def test_a_run_length_bitmap_is_small() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 20_000_000, 2, 1, 8, 1, 0, 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + header + bytes(1024) + b"\0\2\xff\xff\0\1"
    refused(data, "too long to decode")


def test_a_file_of_many_bytes_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    with path.open("wb") as file:
        file.write(encoded(picture(30, 30), "WEBP"))
        file.truncate(2**40)
    refused(str(path), "larger than an image of max_image_pixels")


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000", "PNG", "GIF", "TIFF", "BMP", "PPM", "JPEG"])
def test_every_format_is_refused_over_the_pixel_limit(kind: str) -> None:
    refused(encoded(picture(101, 100), kind), "max_image_pixels=10000", DecodeOptions(max_pixels=10_000))


# ---------------------------------------------------------------- metadata in countless pieces


def _after_start(data: bytes, length: int, pieces: bytes) -> bytes:
    return data[:length] + pieces + data[length:]


_JPEG, _PNG = encoded(picture(20, 20)), encoded(picture(20, 20), "PNG")
_COMMENT = b"\xff\xfe\0\4ab"
_EXIF = b"\xff\xe1\0\x0aExif\0\0ab"
_PROFILE = b"\xff\xe2\0\x12ICC_PROFILE\0\1\1ab"
_GIF = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_after_start(_JPEG, 2, _COMMENT * 200_000), "too many pieces"),
        (_after_start(_JPEG, 2, _PROFILE * 200_000), "too many pieces"),
        (_after_start(_JPEG, 2, _EXIF * 1000), "too many pieces"),
        (_after_start(_PNG, 33, _chunk(b"teST", b"") * 200_000), "too many pieces"),
        (_after_start(_PNG, 33, _chunk(b"tEXt", b"k\0v") * 200_000), "too many pieces"),
        (_PNG[:-12] + _chunk(b"teST", b"") * 200_000 + _PNG[-12:], "too many pieces"),
        (_GIF + b"!\xfe\3abc\0" * 100_000, "bytes of comments"),
        (_GIF + b"!\xfe" + b"\1a" * 200_000 + b"\0", "bytes of comments"),
    ],
    ids=[
        "comments",
        "profiles",
        "exif",
        "chunks",
        "texts",
        "chunks at the end",
        "gif comments",
        "gif comment in pieces",
    ],
)
def test_metadata_in_countless_pieces_is_refused(data: bytes, reason: str) -> None:
    """Each takes microseconds, and where they are joined one by one (EXIF, comments) that many times their bytes."""
    refused(data, reason)


def test_ordinary_metadata_is_no_matter() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 5000
    whole = encoded(picture(300, 200), exif=exif, icc_profile=b"p" * 300_000, comment=b"c" * 60_000)
    assert decode(_after_start(whole, 2, _COMMENT * 1000), PLAIN).size == (300, 200)
    frames = [picture(40, 40, seed=seed) for seed in range(3)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"c" * 10_000)
    assert decode(gif, PLAIN).size == (40, 40)


@pytest.mark.parametrize("order", "<>")
def test_a_tiff_comes_in_few_parts(order: str) -> None:
    def tiff(count: int, fields: int) -> bytes:
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
        return head + struct.pack(order + "H", fields) + struct.pack(order + "HHII", 273, 4, count, 8) + bytes(4)

    refused(tiff(2_000_000, 1), "2000000 parts")
    refused(tiff(1, 60_000), "60000 fields")
    refused(tiff(1, 1), "not an image|cannot be decoded")
    for broken in (b"II*\0", b"MM\0+\0\x08\0\0" + b"\xff" * 8, b"II+\0" + b"\xff" * 30):
        refused(broken, "not an image|cannot be decoded")
    assert decode(encoded(picture(30, 4000), "TIFF", compression="tiff_deflate"), PLAIN).size == (30, 4000)


# ---------------------------------------------------------------- what threads take together


def test_threads_decode_no_more_at_a_time_than_one_may() -> None:
    """Ten threads, each with an image of the costliest kind: one at a time; of a cheap kind: five."""
    for kind, most in (("JPEG2000", 1), ("JPEG", 5)):
        memory = DecodingMemory(10_000)
        image = Image.new("RGB", (100, 100))
        image.format = kind
        lock, running, busiest = threading.Lock(), [0], [0]
        everybody_runs = threading.Barrier(most)

        def work(memory: DecodingMemory = memory, image: Image.Image = image, **kept: Any) -> None:
            with memory.taken_for(image):
                with kept["lock"]:
                    kept["running"][0] += 1
                    kept["busiest"][0] = max(kept["busiest"][0], kept["running"][0])
                kept["everybody_runs"].wait(30)
                with kept["lock"]:
                    kept["running"][0] -= 1

        kept = {"lock": lock, "running": running, "busiest": busiest, "everybody_runs": everybody_runs}
        threads = [threading.Thread(target=work, kwargs=kept) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert busiest == [most]
