"""Reading real shards: which images, how often, in which order, and what an error does."""

import hashlib
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from detectors.transforms import Augmentation
from pipelines import shard_writing
from pipelines.commits import commit_images, commit_labels
from pipelines.records import Annotations, Category, ImageRecord, LabelMap
from pipelines.shard_writing import label_rows, write_image_shard, write_label_shard
from pipelines.storage import Store
from pipelines.versions import open_dataset
from workers import loader
from workers.loader import RowGroupReader, epoch_plan, evaluation_batches, list_row_groups, training_batches

LABELS = LabelMap(categories=(Category(category_id=1, name="thing"),))


def picture(number):
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), number * 5, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def record(number, split, annotations):
    image = picture(number)
    return ImageRecord(
        image_id=f"{split}/{number}",
        image=image,
        format="png",
        width=30,
        height=20,
        sha256=hashlib.sha256(image).hexdigest(),
        source="here",
        split=split,
        coco_image_id=number,
        annotations=annotations,
    )


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """20 training images in row groups of 6, of which one was never looked at, and 5 for validation."""
    monkeypatch.setattr(shard_writing, "MAX_GROUP_ROWS", 6)
    box = Annotations.from_boxes(np.array([[3, 4, 10, 10]]), np.array([1]))
    records = [record(i, "train", None if i == 7 else box) for i in range(20)]
    records += [record(i, "val", box) for i in range(20, 25)]
    store = Store.open(tmp_path / "dataset")
    images = write_image_shard(store, records)
    labels = write_label_shard(store, "gt", images.path, label_rows(records))
    version = commit_images(store.uri, [images], plan_id="p")
    commit_labels(store.uri, "gt", [labels], plan_id="p", label_map=LABELS, images_version=version, ledger={})
    return open_dataset(store.uri)


@pytest.fixture
def reads(monkeypatch):
    """Row groups as they are read from storage."""
    seen = []
    original = loader.read_row_group

    def read(ref, *arguments):
        seen.append(ref.row_group)
        return original(ref, *arguments)

    monkeypatch.setattr(loader, "read_row_group", read)
    return seen


def test_row_groups_hold_the_labelled_images_of_their_split(dataset):
    groups = list_row_groups(dataset, "train")
    assert [len(group.image_ids) for group in groups] == [6, 5, 6, 2]
    assert [i for group in groups for i in group.image_ids] == [f"train/{n}" for n in range(20) if n != 7]
    assert [len(group.image_ids) for group in list_row_groups(dataset, "val")] == [5]
    assert list_row_groups(dataset, "test") == ()


def batches_of(dataset, reader, groups, *, epoch=0, threads=1):
    plan = epoch_plan([len(g.image_ids) for g in groups], batch_size=4, epoch=epoch, seed=0, world=1, rank=0)
    return training_batches(
        reader,
        plan,
        label_map=LABELS,
        augmentation=Augmentation(size=30, vertical_flip=0.5, scale=(0.7, 1.5), brightness=0.3),
        seed=(0, epoch, 0),
        threads=threads,
    )


def test_a_dataset_that_fits_is_read_once_in_two_epochs(dataset, reads):
    groups = list_row_groups(dataset, "train")
    reader = RowGroupReader(groups, max_bytes=2**20)
    seen = [s.image_id for epoch in range(2) for b in batches_of(dataset, reader, groups, epoch=epoch) for s in b]
    assert sorted(reads) == [0, 1, 2, 3]
    assert set(seen) == {i for group in groups for i in group.image_ids}


def test_what_does_not_fit_is_forgotten_and_read_again(dataset, reads):
    groups = list_row_groups(dataset, "train")
    reader = RowGroupReader(groups, max_bytes=1)
    for group in (0, 0, 1, 0):
        assert reader.record(group, 1).image_id == groups[group].image_ids[1]
    assert reads == [0, 1, 0]


def test_many_threads_read_a_row_group_once(dataset, reads):
    groups = list_row_groups(dataset, "train")
    reader = RowGroupReader(groups, max_bytes=2**20)
    start = threading.Barrier(8)

    def read():
        start.wait()
        reader.record(2, 0)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [2]


def test_a_read_that_fails_after_it_was_pushed_out_still_tells_all_who_wait(dataset, monkeypatch):
    groups = list_row_groups(dataset, "train")
    reader = RowGroupReader(groups, max_bytes=1)
    original, reading, pushed_out = loader.read_row_group, threading.Event(), threading.Event()

    def read(ref, *arguments):
        if ref.row_group == groups[0].ref.row_group:
            reading.set()
            pushed_out.wait()
            raise OSError("the disk is gone")
        return original(ref, *arguments)

    monkeypatch.setattr(loader, "read_row_group", read)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(reader.record, 0, 0)
        reading.wait()
        waiting = pool.submit(reader.record, 0, 1)
        reader.record(1, 0)
        reader.record(2, 0)
        pushed_out.set()
        for failed in (first, waiting):
            with pytest.raises(OSError, match="the disk is gone"):
                failed.result(timeout=10)


def test_batches_are_the_same_whatever_thread_prepares_them(dataset):
    groups = list_row_groups(dataset, "train")
    one, many = (list(batches_of(dataset, RowGroupReader(groups, max_bytes=2**20), groups, threads=n)) for n in (1, 4))
    for left, right in zip(one, many, strict=True):
        assert [s.image_id for s in left] == [s.image_id for s in right]
        assert all((a.image == b.image).all() for a, b in zip(left, right, strict=True))
        assert all((a.target.boxes == b.target.boxes).all() for a, b in zip(left, right, strict=True))


def test_evaluation_keeps_the_order_and_gives_the_stored_pixels(dataset):
    groups = list_row_groups(dataset, "val")
    reader = RowGroupReader(groups, max_bytes=2**20)
    batches = list(evaluation_batches(reader, [(0, place) for place in range(5)], batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    found = [(record.image_id, int(image[0, 0, 0])) for batch in batches for record, image in batch]
    assert found == [(f"val/{n}", n * 5) for n in range(20, 25)]


def test_an_unreadable_image_stops_the_iteration_with_its_name_and_no_thread_stays(dataset, monkeypatch):
    groups = list_row_groups(dataset, "train")
    original = loader.to_image_and_target

    def decode(record, label_map, **options):
        if record.image_id == "train/3":
            raise ValueError("train/3 cannot be decoded")
        return original(record, label_map, **options)

    monkeypatch.setattr(loader, "to_image_and_target", decode)
    with pytest.raises(ValueError, match="train/3 cannot be decoded"):
        list(batches_of(dataset, RowGroupReader(groups, max_bytes=2**20), groups))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
