"""Encoded images and annotations in, tensors out, and back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.structures import Prediction
from pipelines.records import Annotations, Category, LabelMap
from workers.batches import decode_image, to_annotations, to_target

LABELS = LabelMap(categories=(Category(category_id=7, name="cat"), Category(category_id=3, name="dog")))


def encode(pixels, kind, mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_very_pixels(kind):
    assert torch.equal(decode_image(encode(PIXELS, kind)), torch.from_numpy(PIXELS).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_kind_of_jpeg_becomes_rgb(mode):
    smooth = np.full((16, 24, 3), 90, np.uint8)
    image = decode_image(encode(smooth, "JPEG", mode, quality=95))
    assert image.shape == (3, 16, 24) and image.dtype == torch.uint8
    assert (image.int() - 90).abs().max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_8_are_kept(kind):
    deep = PIXELS[..., 0].astype(np.uint16) * 256 + 77
    stream = io.BytesIO()
    Image.fromarray(deep).save(stream, kind)
    assert torch.equal(decode_image(stream.getvalue()), torch.from_numpy(PIXELS[..., 0]).expand(3, -1, -1))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused_rather_than_clipped(dtype):
    stream = io.BytesIO()
    Image.fromarray(np.ones((4, 4), dtype)).save(stream, "TIFF")
    with pytest.raises(ValueError, match=r"a\.tif has pixels of 32 bits"):
        decode_image(stream.getvalue(), name="a.tif")


def test_whatever_a_decoder_raises_is_a_bad_image(monkeypatch):
    image = encode(PIXELS, "PNG")

    def broken(*_):
        raise IndexError("bytearray index out of range")

    monkeypatch.setattr(Image.Image, "convert", broken)
    with pytest.raises(ValueError, match="cannot be decoded: IndexError"):
        decode_image(image)


def test_exif_rotation_is_not_applied_as_boxes_are_in_the_stored_frame():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(PIXELS, "JPEG", exif=exif)).shape == (3, 12, 17)


@pytest.mark.parametrize("image", [b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_unreadable_bytes_are_an_error_with_the_images_name(image):
    with pytest.raises(ValueError, match=r"a/b\.jpg cannot be decoded"):
        decode_image(image, name="a/b.jpg")


def test_annotations_become_labels_in_the_label_maps_order():
    target = to_target(Annotations.from_boxes(np.array([[1, 2, 3, 4], [0, 0, 5, 5]]), np.array([3, 7])), LABELS)
    assert target.labels.tolist() == [1, 0]
    assert target.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 5, 5]]
    assert target.iscrowd.tolist() == [False, False]


def test_an_image_without_objects_is_a_target_of_none():
    target = to_target(Annotations.empty(), LABELS)
    assert target.boxes.shape == (0, 4) and target.labels.shape == (0,) and target.labels.dtype == torch.int64


def test_predictions_go_back_to_the_sources_ids():
    prediction = Prediction(
        boxes=torch.tensor([[1.0, 2, 4, 6]]), labels=torch.tensor([1]), scores=torch.tensor([0.5]), size=(10, 10)
    )
    annotations = to_annotations(prediction, LABELS)
    assert annotations.boxes_xywh.tolist() == [[1, 2, 3, 4]]
    assert annotations.category_ids.tolist() == [3] and annotations.scores.tolist() == [0.5]
