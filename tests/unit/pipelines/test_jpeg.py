"""The quick look at a JPEG's header says what Pillow says, or nothing."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from pipelines.checks import BadImage, probe_image
from pipelines.jpeg import plain_jpeg_size


def jpeg(mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = 6
    return found


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_ordinary_files_are_read(mode: str, progressive: bool) -> None:
    image = jpeg(mode, progressive=progressive, comment=b"\xff\xd9 in a comment", icc_profile=bytes(70_000))
    assert plain_jpeg_size(image) == (40, 30)
    header = probe_image(image)
    assert (header.format, header.width, header.height, header.exif_orientation) == ("jpeg", 40, 30, 1)


def test_what_is_not_ordinary_is_left_to_pillow() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    for image in (jpeg("CMYK"), jpeg(exif=exif()), stream.getvalue(), png.getvalue(), b"", b"\xff\xd8\xff"):
        assert plain_jpeg_size(image) is None
    assert probe_image(jpeg(exif=exif())).exif_orientation == 6


def test_a_cut_file_is_not_whole() -> None:
    image = jpeg(comment=b"\xff\xd9")
    for length in range(len(image) - 1):
        assert plain_jpeg_size(image[:length]) is None
    with pytest.raises(BadImage, match="end marker"):
        probe_image(image[:-2])


def test_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="limit of 1000"):
        probe_image(jpeg())


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4), progressive=st.booleans())
def test_never_another_size_than_pillow(flips: list[tuple[int, int]], progressive: bool) -> None:
    image = bytearray(jpeg(progressive=progressive))
    for at, value in flips:
        image[at % len(image)] = value
    found = plain_jpeg_size(bytes(image))
    if found is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image)) as opened:
                assert (opened.format, opened.size) == ("JPEG", found)
    except (UnidentifiedImageError, OSError, SyntaxError):
        pass  # tables that are broken are found where pixels are decoded
