"""The deep check sees what the header and the end marker do not tell."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.checks import BadImage, probe_image
from pipelines.pixels import check_pixels, jpeg_end
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.making import coco_document, coco_images, encoded, write_coco
from workers.ingest import ingest

PIXELS = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
SMOOTH = np.broadcast_to(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], (60, 90, 3))


def jpeg(pixels: np.ndarray = PIXELS, **options) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", **options)
    return sink.getvalue()


VARIANTS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "grey": {},
    "4:4:4": {"subsampling": 0},
}


@pytest.mark.parametrize("pixels", [PIXELS, SMOOTH], ids=["noise", "smooth"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_whole_jpegs_pass(pixels: np.ndarray, options: dict):
    image = jpeg(pixels, **options)
    check_pixels(image, "jpeg")
    check_pixels(image + b"trailing \xff\xd9 rubbish", "jpeg")
    assert jpeg_end(image) == len(image) - 2


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_whole_images_of_other_formats_pass(format: str):
    check_pixels(encoded(31, 17, format=format), format.lower())


@pytest.mark.parametrize("cut", [10, 40, 200, 1000])
def test_a_jpeg_that_ends_early_but_has_its_marker_is_bad(cut: int):
    whole = jpeg()
    image = whole[: -2 - cut] + b"\xff\xd9"
    assert probe_image(image).width == 90  # header and end marker are in order
    with pytest.raises(BadImage, match="before the last pixel"):
        check_pixels(image, "jpeg")


def test_damaged_pngs_and_tiffs_are_bad():
    png = bytearray(encoded(31, 17, format="PNG"))
    png[len(png) // 2] ^= 1
    with pytest.raises(BadImage, match="cannot be decoded"):
        check_pixels(bytes(png), "png")
    bmp = encoded(31, 17, format="BMP")[:-100]
    assert probe_image(bmp).width == 31
    with pytest.raises(BadImage, match="cannot be decoded"):
        check_pixels(bmp, "bmp")


def test_ingest_with_and_without_the_deep_check(tmp_path):
    images = coco_images(3)
    images["2.jpg"] = images["2.jpg"][:-60] + b"\xff\xd9"
    source = open_source("coco", **write_coco(tmp_path, "train", coco_document(3), images))
    shallow = ingest(source, str(tmp_path / "shallow"))
    assert shallow.num_images == 3
    deep = ingest(source, str(tmp_path / "deep"), deep_check=True)
    assert deep.ledger["images"] == {"seen": 3, "imported": 2, "mended": 0, "dropped": 0, "quarantined": 1}
    assert sorted(r.image_id for r in open_dataset(deep.reference).records()) == ["1.jpg", "3.jpg"]
    # Another check is another plan: it is not taken for done.
    assert ingest(source, str(tmp_path / "deep"), deep_check=True).found
    assert not ingest(source, str(tmp_path / "shallow"), label_set="deep", deep_check=True).found
