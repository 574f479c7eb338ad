"""A browsable gallery: a folder of static files that a browser opens from a disk or a bucket, without a server.

``index.html`` with a style and a script, ``data/index.js`` with what filters and sorting need of every image,
``data/<n>.js`` with what is drawn on a few hundred of them, ``thumbs/<n>.jpg``. Scripts and not JSON, because a page
on a disk may not fetch; nothing of a name ever becomes a path or markup.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import islice
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from pipelines.checks import BadImage, probe_image
from pipelines.decoding import decode_rgb
from pipelines.in_order import in_order
from pipelines.predictions import PredictionSet
from pipelines.records import Annotations, Category, LabelMap
from pipelines.report.browse_images import BrowsedImage, Choose, choose_images, read_images
from pipelines.report.shapes import Skeleton, outline_path, skeleton
from pipelines.sources.drawn import to_pixels
from pipelines.sources.frames import stored_to_upright
from pipelines.storage import Store, redact
from pipelines.uncertainty import Aggregate, Measure
from pipelines.versions import Dataset

MOST_IMAGES = 2000
SIZE = 640  # pixels
_SHARD = 200  # images
_THREADS = 8
_QUALITY = 80
_MOST_OBJECTS = 300  # drawn an image
_CROWDED, _CLEAR = 20, 10  # objects an image: from where on the page opens with the best alone, and how many these are
_MOST_HIDDEN = 0.3  # a score from which on nothing is hidden at first
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryReport:
    """What was written.

    Attributes:
        uri: of the page.
        num_images, num_objects: shown; objects are predictions where there are some, else truth.
        total: images there were to choose from.
        unreadable: images of which there is no thumbnail.
        files, size: number and bytes.
    """

    uri: str
    num_images: int
    num_objects: int
    total: int
    unreadable: int
    files: int
    size: int


def write_gallery(
    out_uri: str,
    dataset: Dataset,
    predictions: PredictionSet | None = None,
    *,
    splits: Collection[str] | None = None,
    most: int = MOST_IMAGES,
    choose: Choose = "random",
    size: int = SIZE,
    measure: Measure = "margin",
    aggregate: Aggregate = "max",
    title: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GalleryReport:
    """Write the gallery; the page itself comes last.

    Args:
        out_uri: a folder on any store.
        dataset: truth, or predictions on their own.
        predictions: shown on their images beside the dataset's truth, with what was found, missed and false.
        splits: only these; None for all.
        most: images, and thus thumbnails, at most.
        choose: which, where there are more: by chance (always the same), the most uncertain, or the first.
        size: longest side of the thumbnails, pixels.
        measure, aggregate: see ``pipelines.uncertainty``.
        title: of the page.
    Raises:
        EmptyDataset: no image in these splits.
        ValueError: a size or number that makes no gallery.
    """
    if size < 16 or most < 1:
        raise ValueError(
            f"size={size}, most={most}: thumbnails of at least 16 pixels and at least one image are needed"
        )
    chosen = choose_images(
        dataset, predictions, splits=splits, most=most, choose=choose, measure=measure, aggregate=aggregate
    )
    predicted = chosen.base.metadata["kind"] == "predictions"
    folder = _Folder(store=Store.open(out_uri))
    entries: list[dict[str, Any]] = []

    def make(one: tuple[int, tuple[BrowsedImage, Callable[[], bytes]]]) -> tuple[BrowsedImage, _Copy, int]:
        number, (image, read) = one
        copy = _copy(read, size)
        return image, copy, folder.write_thumbnail(number, copy)

    # Drawn one by one: memory holds a few images, whether they are read here or come from a stream.
    made = in_order(make, enumerate(read_images(chosen)), threads=_THREADS)
    while part := list(islice(made, _SHARD)):
        number, drawn = len(entries) // _SHARD, []
        for image, copy, _ in part:
            entry, marks = _entry(image, copy, chosen.label_map, size, predicted)
            entries.append(entry)
            drawn.append(marks)
        folder.count(written for _, _, written in part)
        folder.write_script(f"data/{number}.js", f"boxmillShard({number},", drawn)
        if progress is not None:
            progress(len(entries), len(chosen.images))
    about = {
        "title": title or _title(dataset, predictions),
        "dataset": redact(dataset.reference),
        "predictions": None if predictions is None else redact(predictions.reference),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "total": chosen.total,
        "shard": _SHARD,
        "predicted": predicted,
        "compared": predictions is not None and any(image.truth is not None for image, _ in chosen.images),
        "low": _opening_score([entry["s"] for entry in entries]),
        "classes": list(chosen.label_map.names),
        "images": _columns(entries),
    }
    folder.write_script("data/index.js", "boxmillIndex(", about)
    folder.write_page(about)
    return GalleryReport(
        uri=folder.store.join("index.html"),
        num_images=len(entries),
        num_objects=sum(len(entry["c"]) for entry in entries),
        total=chosen.total,
        unreadable=sum(not entry["thumb"] for entry in entries),
        files=folder.files,
        size=folder.size,
    )


def _opening_score(scores: Sequence[Sequence[float]]) -> float:
    """The lowest score that is shown at first, in steps of the slider.

    Label sets that are made to be measured keep a hundred doubtful boxes an image, under which nothing could be seen.
    """
    every = sorted((score for of_image in scores for score in of_image), reverse=True)
    if len(every) <= _CROWDED * len(scores):
        return 0.0
    return min(_MOST_HIDDEN, math.floor(every[_CLEAR * len(scores)] * 100) / 100)


def _title(dataset: Dataset, predictions: PredictionSet | None) -> str:
    name = redact(dataset.uri).rstrip("/").rpartition("/")[2]
    return f"{name} · {(predictions.labels if predictions is not None else dataset).label_set}"


@dataclass(slots=True, kw_only=True)
class _Folder:
    """What is written, counted."""

    store: Store
    files: int = 0
    size: int = 0

    def count(self, sizes: Iterable[int]) -> None:
        """Of written files; 0 for one that was not."""
        for size in sizes:
            self.files += size > 0
            self.size += size

    def _write(self, path: str, content: bytes) -> None:
        self.store.write_bytes(path, content)
        self.count([len(content)])

    def write_thumbnail(self, number: int, copy: _Copy) -> int:
        """Its size; not counted, since many threads do this."""
        if copy.jpeg:
            self.store.write_bytes(f"thumbs/{number}.jpg", copy.jpeg)
        return len(copy.jpeg)

    def write_script(self, path: str, call: str, value: Any) -> None:
        # ASCII alone: no character of a name can end a line or a string.
        self._write(path, f"{call}{json.dumps(value, separators=(',', ':'))});\n".encode())

    def write_page(self, about: Mapping[str, Any]) -> None:
        here = files("pipelines.report")
        self._write("gallery.css", b"".join((here / name).read_bytes() for name in ("report.css", "browse.css")))
        self._write("gallery.js", b"".join((here / name).read_bytes() for name in ("browse_draw.js", "browse.js")))
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string((here / "browse.html.j2").read_text("utf-8"))
        self._write("index.html", template.render(**about).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A thumbnail as a viewer shows it, upright; no bytes where the image cannot be read, and then why.

    Attributes:
        width, height: of the image as it is stored; 0 where it cannot be read.
    """

    jpeg: bytes = b""
    orientation: int = 1
    width: int = 0
    height: int = 0
    error: str = ""


def _copy(read: Callable[[], bytes], size: int) -> _Copy:
    # One damaged image must not cost the others: lost credentials and the like are no BadImage, and end all of it.
    try:
        image = read()
        header = probe_image(image)
        picture = decode_rgb(image, about=size)
    except BadImage as error:
        return _Copy(error=str(error))
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    if header.exif_orientation in _TURNS:
        picture = picture.transpose(_TURNS[header.exif_orientation])
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=_QUALITY, optimize=True)
    return _Copy(jpeg=encoded.getvalue(), orientation=header.exif_orientation, width=header.width, height=header.height)


def _entry(
    image: BrowsedImage, copy: _Copy, label_map: LabelMap, size: int, predicted: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the index says of an image, and what is drawn on it, in pixels of the upright picture."""
    # Of an archive's image that failed the row has no size.
    width, height = image.width or copy.width, image.height or copy.height
    if copy.orientation >= 5:
        width, height = height, width
    grain = max(width, height) / size

    def drawn(objects: Annotations | None) -> list[dict[str, Any]]:
        if objects is None:
            return []
        if copy.orientation != 1:
            fractions = to_pixels(objects, 1 / image.width, 1 / image.height)
            objects = to_pixels(stored_to_upright(fractions, copy.orientation), width, height)
        return list(_shapes(objects, label_map, grain))

    shown = image.found if predicted else image.truth
    labels = [] if shown is None else label_map.to_labels(shown.category_ids).tolist()
    scores = None if shown is None or shown.scores is None else shown.scores
    entry = {
        "id": image.image_id,
        "w": width,
        "h": height,
        "split": image.split,
        "thumb": bool(copy.jpeg),
        "u": round(image.uncertainty, 4),
        "why": image.error or " · ".join(part for part in (copy.error, image.reason) if part),
        "c": labels[:_MOST_OBJECTS],
        "s": [] if scores is None else [round(s, 4) for s in scores.tolist()[:_MOST_OBJECTS]],
        "o": list(image.states[:_MOST_OBJECTS]),
        "t": [],
        "m": [],
        "looked": shown is not None,
    }
    marks: dict[str, Any] = {"o": drawn(shown)}
    if predicted and image.truth is not None:
        entry["t"] = label_map.to_labels(image.truth.category_ids).tolist()[:_MOST_OBJECTS]
        # A crowd is never missed.
        met = [2.0 if crowd else score for crowd, score in zip(image.truth.iscrowd.tolist(), image.met, strict=True)]
        entry["m"] = [-1 if score is None else round(score, 4) for score in met[:_MOST_OBJECTS]]
        marks["t"] = drawn(image.truth)
    return entry, marks


def _shapes(objects: Annotations, label_map: LabelMap, grain: float) -> Iterator[dict[str, Any]]:
    labels = label_map.to_labels(objects.category_ids).tolist()
    for at in range(min(len(objects), _MOST_OBJECTS)):
        shape: dict[str, Any] = {"b": [round(v, 1) for v in objects.boxes_xywh[at].tolist()]}
        outline = outline_path(objects.polygons[at], objects.rles[at], grain)
        if outline:
            shape["p"] = outline
        bones = _skeleton(objects, at, label_map.categories[labels[at]])
        if bones is not None:
            shape["k"] = [list(bones.joints), list(bones.bones)]
        yield shape


def _skeleton(objects: Annotations, at: int, category: Category) -> Skeleton | None:
    keypoints = objects.keypoints[at]
    return None if keypoints is None or not np.isfinite(keypoints).all() else skeleton(keypoints, category)


def _columns(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One list a field: half the size of a list of objects."""
    return {name: [entry[name] for entry in entries] for name in entries[0]} if entries else {}
