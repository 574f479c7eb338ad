"""How a training worker reads its images: which ones, in which order, and ahead of their use.

``epoch_plan`` decides everything from (epoch, seed, world, rank); the rest reads row groups, decodes and augments
in threads while the network computes.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from detectors.structures import Target
from detectors.transforms import Augmentation, augment
from pipelines.records import ImageRecord, LabelMap
from pipelines.shards import RowGroupRef, read_label_columns, read_row_group
from pipelines.versions import Dataset
from workers.batches import decode_image, to_image_and_target

T = TypeVar("T")

_INDEX_COLUMNS = ("image_id", "row_group", "split", "objects.id")
_LABEL_READERS = 16
_DONORS = 64  # images to each side, among which one to paste objects of is chosen
WINDOW = 4
"""Row groups whose images are mixed: more is nearer a perfect shuffle, and as many must fit into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group and its images of one split, in stored order."""

    ref: RowGroupRef
    split: str
    image_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One image ready for batching: (3, H, W) uint8 and its objects in the same pixels."""

    image_id: str
    image: Tensor
    target: Target


def epoch_plan(
    group_sizes: Sequence[int],
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    world: int,
    rank: int,
    window: int = WINDOW,
) -> NDArray[np.int64]:
    """The batches of one rank in one epoch, a pure function of its arguments.

    Row groups are put in random order and cut into one span a rank, so that a rank reads about 1/world of the
    bytes; inside a span, images are mixed over ``window`` row groups at a time.

    Args:
        group_sizes: images in each row group.
        batch_size: images a step and rank.
    Returns:
        (steps, batch_size, 2) of row group and place in it. All ranks have the same number of steps. Spans are
        disjoint and cover every image; where they do not fill the last batches, images of the span are repeated.
    Raises:
        ValueError: no images, or fewer than ranks.
    """
    total = int(sum(group_sizes))
    if total < world:
        raise ValueError(f"{total} images cannot be shared by {world} workers; use at most {max(total, 1)} worker(s)")
    rng = np.random.default_rng([seed, epoch])  # The same on all ranks: they cut one common order.
    group_order = rng.permutation(len(group_sizes))
    # Rows are mixed before the cut, or a group that lies across it would always be cut at the same images.
    samples = np.concatenate(
        [np.stack([np.full(group_sizes[g], g), rng.permutation(group_sizes[g])], axis=1) for g in group_order]
    )
    span = samples[total * rank // world : total * (rank + 1) // world]
    rank_rng = np.random.default_rng([seed, epoch, rank])
    place_of_group = np.empty(len(group_sizes), np.int64)
    place_of_group[group_order] = np.arange(len(group_sizes))
    window_of_sample = place_of_group[span[:, 0]] // window
    span = span[np.lexsort((rank_rng.random(len(span)), window_of_sample))]

    steps = steps_per_epoch(total, batch_size=batch_size, world=world)
    lacking = steps * batch_size - len(span)
    # The newest images of the span are likeliest to be in memory still.
    repeated = span[len(span) - 1 - np.arange(lacking) % len(span)]
    return np.concatenate([span, repeated]).reshape(steps, batch_size, 2).astype(np.int64)


def steps_per_epoch(num_images: int, *, batch_size: int, world: int) -> int:
    """Steps of every rank: enough for the rank with the most images."""
    most = -(-num_images // world)
    return -(-most // batch_size)


def shard_of_rank(num_images: int, *, world: int, rank: int) -> range:
    """Contiguous share of a rank in an order that is not shuffled, as for validation."""
    return range(num_images * rank // world, num_images * (rank + 1) // world)


def list_row_groups(dataset: Dataset, split: str) -> tuple[RowGroup, ...]:
    """The row groups of a dataset that hold images of a split, without empty ones.

    Images without annotations (which a model failed on, in a set of predictions) are left out: they may hold
    objects, and must not be learnt as background.
    """
    with ThreadPoolExecutor(_LABEL_READERS) as pool:
        tables = pool.map(lambda shard: read_label_columns(shard, _INDEX_COLUMNS), dataset.shards)
        image_ids: dict[tuple[str, int], list[str]] = {}
        for shard, table in zip(dataset.shards, tables, strict=True):
            wanted = table.filter(pc.and_(pc.equal(table["split"], split), pc.is_valid(table["objects"])))
            for row in wanted.select(["row_group", "image_id"]).to_pylist():
                image_ids.setdefault((shard.label_path, row["row_group"]), []).append(row["image_id"])
    return tuple(
        RowGroup(ref=ref, split=split, image_ids=tuple(image_ids[ref.shard.label_path, ref.row_group]))
        for ref in dataset.row_groups()
        if (ref.shard.label_path, ref.row_group) in image_ids
    )


class RowGroupReader:
    """Reads row groups once while they fit, for many threads.

    Args:
        groups: what can be read.
        max_bytes: encoded images kept; the least recently used row groups go first, the newest always stays.
    """

    def __init__(self, groups: Sequence[RowGroup], *, max_bytes: int) -> None:
        self._groups = groups
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._cached: OrderedDict[int, Future[dict[str, ImageRecord]]] = OrderedDict()

    def record(self, group: int, place: int) -> ImageRecord:
        """The image at ``place`` of row group ``group``."""
        image_id = self._groups[group].image_ids[place]
        with self._lock:
            found = self._cached.get(group)
            if mine := found is None:
                found = self._cached[group] = Future()
            self._cached.move_to_end(group)
        if mine:
            self._read(group, found)
        return found.result()[image_id]

    def _read(self, group: int, promise: Future[dict[str, ImageRecord]]) -> None:
        wanted = self._groups[group]
        try:
            records = {record.image_id: record for record in read_row_group(wanted.ref, (wanted.split,))}
        except BaseException as error:
            with self._lock:
                # The next reader tries again. Others may have pushed this group out, and one asked for it anew.
                if self._cached.get(group) is promise:
                    del self._cached[group]
            promise.set_exception(error)
            return
        promise.set_result(records)
        with self._lock:
            while len(self._cached) > 1 and self._size() > self._max_bytes:
                self._cached.popitem(last=False)

    def _size(self) -> int:
        done = (f for f in self._cached.values() if f.done() and f.exception() is None)
        return sum(len(record.image) for f in done for record in f.result().values())


def training_batches(
    reader: RowGroupReader,
    plan: NDArray[np.int64],
    *,
    label_map: LabelMap,
    augmentation: Augmentation,
    seed: Sequence[int],
    needs: Collection[str] = (),
    threads: int = 1,
    ahead: int = 3,
) -> Iterator[list[Sample]]:
    """Augmented batches in the order of ``plan``, prepared ``ahead`` of their use.

    Args:
        plan: of ``epoch_plan``.
        seed: with the step and the place in the batch it decides each augmentation, whatever thread does it.
        needs: the detector's, see ``Detector.needs``.
    """
    flip_pairs = [label_map.flip_pairs(label) for label in range(len(label_map))]
    decoded = {*needs, "masks"} if augmentation.needs_masks else needs
    # More pixels than these no augmentation enlarges.
    longest = math.ceil(augmentation.size * max(1.0, augmentation.scale[1]))
    order = plan.reshape(-1, 2)

    def read(place: NDArray[np.int64]) -> tuple[ImageRecord, Tensor, Target]:
        record = reader.record(int(place[0]), int(place[1]))
        return record, *to_image_and_target(record, label_map, needs=decoded, longest=longest)

    def read_another(near: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        """Of the images around one in the epoch's order: their row groups are likely in memory."""
        place = rng.integers(max(0, near - _DONORS), min(len(order), near + _DONORS))
        return read(order[place])[1:]

    def prepare(step: int) -> list[Sample]:
        batch = []
        for slot, place in enumerate(plan[step]):
            rng = np.random.default_rng([*seed, step, slot])
            record, image, target = read(place)
            image, target = augment(
                image,
                target,
                augmentation,
                rng,
                flip_pairs=flip_pairs,
                donor=partial(read_another, step * plan.shape[1] + slot, rng),
            )
            batch.append(Sample(image_id=record.image_id, image=image, target=_without_unused(target, needs)))
        return batch

    return _ahead(prepare, len(plan), threads=threads, ahead=ahead)


def _without_unused(target: Target, needs: Collection[str]) -> Target:
    """Without the masks that only the augmentation wanted."""
    return target if "masks" in needs else replace(target, masks=None, mask_valid=None)


def evaluation_batches(
    reader: RowGroupReader,
    samples: Sequence[tuple[int, int]],
    *,
    batch_size: int,
    threads: int = 1,
    ahead: int = 2,
    decode: Callable[..., Tensor] = decode_image,
) -> Iterator[list[tuple[ImageRecord, Tensor]]]:
    """Records and their decoded (3, H, W) uint8 images in the order of ``samples``, (row group, place) pairs."""

    def prepare(step: int) -> list[tuple[ImageRecord, Tensor]]:
        records = [reader.record(*sample) for sample in samples[step * batch_size : (step + 1) * batch_size]]
        return [(record, decode(record.image, name=record.image_id)) for record in records]

    return _ahead(prepare, -(-len(samples) // batch_size), threads=threads, ahead=ahead)


def _ahead(prepare: Callable[[int], T], steps: int, *, threads: int, ahead: int) -> Iterator[T]:
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="loader")
    pending: deque[Future[T]] = deque()
    try:
        for step in range(steps):
            pending.append(pool.submit(prepare, step))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
