"""What a labelling worker does around the model: decode ahead, tell bad images apart, batch by size, select."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from detectors.base import Preprocessing
from detectors.structures import Prediction
from pipelines.versions import open_dataset
from tests.making import commit_records, record
from workers.label_inputs import CHUNK, DecodedImage, InputThreads, decode, decode_for_each, decoded_images
from workers.label_model import SizeBatches, select
from workers.label_readers import DatasetReader, RawImage
from workers.label_stages import StageClock

PREPROCESSING = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=64, divisor=32)


@pytest.fixture
def decoded():
    """``decoded_images`` for one model, with two threads for each of reading and decoding."""
    with ThreadPoolExecutor(4) as readers, ThreadPoolExecutor(2) as decoders:
        threads = InputThreads(readers=readers, decoders=decoders, decoding=2)
        yield lambda reader, task: (
            image for (image,) in decoded_images(reader, task, [PREPROCESSING], threads, StageClock())
        )


def jpeg(width: int = 100, height: int = 50) -> bytes:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 255, (height, width, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def test_a_good_image_is_resized_and_remembers_its_size():
    found = decode(RawImage(place=3, image=jpeg(100, 50)), PREPROCESSING)
    assert found.failure is None and found.size == (50, 100) and found.raw.place == 3
    assert found.pixels.shape == (3, 32, 64) and found.pixels.dtype == torch.uint8
    assert found.raw.image == b"", "encoded bytes are not kept beside the pixels"


@pytest.mark.parametrize(
    ("image", "sha256", "stage", "error_class"),
    [
        (b"", None, "decode", "BadImage"),
        (b"text", None, "decode", "BadImage"),
        (jpeg()[:-200], None, "decode", "BadImage"),
        (jpeg()[:400] + b"\xff\xd9", None, "decode", None),
        (jpeg(), "0" * 64, "read", "CorruptShard"),
    ],
)
def test_a_bad_image_is_told_and_not_raised(image, sha256, stage, error_class):
    found = decode(RawImage(place=0, image=image, sha256=sha256), PREPROCESSING)
    assert found.pixels is None and found.failure.stage == stage
    assert error_class in (None, found.failure.error_class)
    assert found.sha256 is not None


def test_a_cut_shard_fails_the_images_behind_the_cut_and_a_missing_one_is_named(tmp_path, decoded):
    records = [record(i) for i in range(6)]
    commit_records(tmp_path, records, plan_id="p")
    (shard,) = open_dataset(str(tmp_path)).shards
    path = tmp_path / shard.image_path
    whole = path.read_bytes()
    task = pa.table({"row": list(range(6)), "image_path": [shard.image_path] * 6})
    path.write_bytes(whole[: whole.index(records[3].image) + 10])
    found = list(decoded(DatasetReader(str(tmp_path)), task))
    assert [image.failure is None for image in found] == [True] * 3 + [False] * 3
    failure = found[3].failure
    assert (failure.stage, failure.error_class) == ("read", "CorruptShard") and shard.image_path in failure.error
    path.unlink()
    with pytest.raises(ValueError, match=rf"{shard.image_path} is missing.*verify"):
        list(decoded(DatasetReader(str(tmp_path)), task))


def test_images_come_in_order_and_only_so_many_are_read_ahead(decoded):
    count = 20 * CHUNK
    task, image = pa.table({"row": list(range(count))}), jpeg(8, 8)
    given = 0
    furthest = 0

    class Reader:
        threads = 4

        def read(self, task, first, last):
            nonlocal furthest
            furthest = max(furthest, last - given)
            return [RawImage(place=i, image=image) for i in range(first, last)]

    places = []
    for found in decoded(Reader(), task):
        given += 1
        places.append(found.raw.place)
    assert places == list(range(count))
    assert furthest <= 6 * CHUNK


def test_a_reader_that_fails_is_heard(decoded):
    class Reader:
        threads = 1

        def read(self, task, first, last):
            raise OSError("the network is gone")

    with pytest.raises(OSError, match="network"):
        list(decoded(Reader(), pa.table({"row": [1, 2]})))


def places_of_batches(images: list[DecodedImage], batches: SizeBatches) -> list[list[int]]:
    found = [batch for image in images for batch in batches.add(image)] + batches.rest()
    return [[image.raw.place for image in batch] for batch in found]


def test_batches_hold_one_padded_size_and_every_image_once():
    def image(place: int, height: int, width: int) -> DecodedImage:
        return DecodedImage(raw=RawImage(place=place), pixels=torch.zeros((3, height, width), dtype=torch.uint8))

    images = [image(0, 64, 30), image(1, 30, 64), image(2, 64, 20), image(3, 64, 33), image(4, 64, 10)]
    images.insert(2, DecodedImage(raw=RawImage(place=9)))
    assert places_of_batches(images, SizeBatches(PREPROCESSING, 2)) == [[9], [0, 2], [1], [3], [4]]


def test_what_waits_for_more_of_its_size_is_bounded_and_the_longest_waiting_goes_first():
    tall, wide, large = (64, 30), (30, 64), (64, 64)
    images = [
        DecodedImage(raw=RawImage(place=place), pixels=torch.zeros((3, *size), dtype=torch.uint8))
        for place, size in enumerate([tall, wide, wide, wide, large, large, tall])
    ]

    def batches(pixels: int) -> list[list[int]]:
        return places_of_batches(images, SizeBatches(PREPROCESSING, 3, most_bytes=3 * pixels))

    assert batches(1 << 20) == [[1, 2, 3], [0, 6], [4, 5]]
    assert batches(9000) == [[1, 2, 3], [0], [4, 5], [6]]
    assert batches(1) == [[place] for place in range(7)], "what is larger than the bound does not wait"


def test_an_image_may_stay_as_large_as_it_is():
    found = decode(RawImage(place=0, image=jpeg(100, 50)), None)
    assert found.pixels.shape == (3, 50, 100) and found.size == (50, 100)


def test_several_models_share_what_is_decoded():
    other = replace(PREPROCESSING, mean=(1.0, 1.0, 1.0))
    small = replace(PREPROCESSING, size=32)
    one, same, less, whole = decode_for_each(
        RawImage(place=0, image=jpeg(100, 50)), [PREPROCESSING, other, small, None]
    )
    assert one.pixels is same.pixels and one.pixels.shape == (3, 32, 64)
    assert less.pixels.shape == (3, 16, 32) and whole.pixels.shape == (3, 50, 100)
    assert {image.size for image in (one, less, whole)} == {(50, 100)} and len({i.sha256 for i in (one, less)}) == 1
    bad = decode_for_each(RawImage(place=0, image=b"text"), [PREPROCESSING, small])
    assert [image.failure.error_class for image in bad] == ["BadImage"] * 2


def test_the_best_above_the_threshold_are_kept():
    prediction = Prediction(
        boxes=torch.arange(16.0).reshape(4, 4),
        labels=torch.tensor([0, 1, 2, 0]),
        scores=torch.tensor([0.9, 0.5, 0.3, 0.1]),
        size=(10, 10),
    )
    assert select(prediction, torch.full((3,), 0.3), 10).labels.tolist() == [0, 1]
    assert select(prediction, torch.zeros(3), 3).scores.tolist() == pytest.approx([0.9, 0.5, 0.3])
    of_class = torch.tensor([0.05, 0.6, 0.2])
    assert select(prediction, of_class, 10).scores.tolist() == pytest.approx([0.9, 0.3, 0.1])
