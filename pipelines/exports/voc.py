"""A dataset version as a PASCAL VOC folder: ``JPEGImages``, ``Annotations``, ``ImageSets/Main``.

VOC counts pixels from 1 and includes both ends: a box from x to x + w is written as x + 1 and x + w, rounded to whole
pixels. Boxes are in the stored frame.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from pipelines.exports.names import split_names
from pipelines.exports.walk import (
    ExportImage,
    ExportReport,
    Losses,
    choose_splits,
    count_losses,
    open_export,
    walk,
    write_files,
)
from pipelines.exports.xml_text import xml_text
from pipelines.records import LabelMap
from pipelines.storage import Store
from pipelines.versions import Dataset

_FLAGS = ("truncated", "difficult", "occluded")
_FOLDER = "JPEGImages"


def export_voc(
    dataset: str | Dataset, out_uri: str, splits: Collection[str] | None = None, images: bool = True
) -> ExportReport:
    """Write a dataset version as VOC.

    VOC's folder is flat: folders of an image's id become part of its name. An image that nobody has looked at gets
    no XML file.

    Args:
        dataset: a reference, or an opened dataset.
        out_uri: a folder on any store.
        splits: only these; None for all.
        images: also write the image files.
    Raises:
        EmptyDataset: no image is in these splits.
    """
    opened = open_export(dataset)
    store = Store.open(out_uri)
    losses = Losses()
    label_map = opened.label_map
    chosen = choose_splits(opened, splits)
    lists: dict[str, list[str]] = {split: [] for split in chosen}
    counts = {"images": 0, "objects": 0}

    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for image in walk(opened, splits, flat=True, by_stem=True):
            stem = image.name.rpartition(".")[0]
            lists[image.split].append(stem)
            counts["images"] += 1
            if image.annotations is not None:
                counts["objects"] += len(image.annotations)
                text = _annotation(image, label_map, losses)
                yield f"Annotations/{stem}.xml", lambda text=text: text  # type: ignore[misc]
            if images:
                yield f"{_FOLDER}/{image.name}", image.read

    write_files(store, files())
    written = {}
    names = split_names(opened.splits, unnamed="train")
    for split, stems in lists.items():
        path = f"ImageSets/Main/{names[split]}.txt"
        store.write_bytes(path, "".join(f"{stem}\n" for stem in stems).encode())
        written[split] = store.join(path)
    return ExportReport(
        files=written,
        num_images=counts["images"],
        num_objects=counts["objects"],
        losses=losses.counts,
        examples=losses.examples,
        never_carried=("image ids", "annotation ids", "category ids", "areas", "parts of pixels", "licenses and URLs"),
    )


def _annotation(image: ExportImage, label_map: LabelMap, losses: Losses) -> bytes:
    found = image.annotations
    assert found is not None
    count_losses(image, losses, ("attributes",))
    root = Element("annotation")
    _text(root, "folder", _FOLDER)
    _text(root, "filename", image.name)
    size = SubElement(root, "size")
    for name, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _text(size, name, str(value))
    _text(root, "segmented", "0")
    labels = label_map.to_labels(found.category_ids)
    for i in range(len(found)):
        object_id = int(found.ids[i])
        attributes = dict(found.attributes[i]) if found.attributes else {}
        element = SubElement(root, "object")
        _text(element, "name", label_map.names[int(labels[i])])
        _text(element, "pose", str(attributes.pop("pose", "Unspecified")))
        for flag in _FLAGS:
            value = attributes.pop(flag, None)
            if value is not None or flag != "occluded":
                _text(element, flag, "1" if value in (1, True, "1") else "0")
        if attributes:
            losses.add("attributes", image.image_id, object_id)
        corners, changed = _corners(*found.boxes[i].tolist(), width=image.width, height=image.height)
        if changed:
            losses.add("box thinner than two pixels widened", image.image_id, object_id)
        box = SubElement(element, "bndbox")
        for name, corner in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            _text(box, name, str(corner))
    indent(root)
    content: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return content


def _corners(
    x0: float, y0: float, x1: float, y1: float, *, width: int, height: int
) -> tuple[tuple[int, int, int, int], bool]:
    """xmin, ymin, xmax, ymax as VOC counts, and whether a side had to grow: VOC readers drop a box of one pixel."""
    left, right, wide = _ends(x0, x1, width)
    top, bottom, tall = _ends(y0, y1, height)
    return (left, top, right, bottom), wide or tall


def _ends(low: float, high: float, side: int) -> tuple[int, int, bool]:
    first = min(max(round(low + 1), 1), side)
    last = min(max(round(high), 1), side)
    if last > first:
        return first, last, False
    return (first, first + 1, True) if first < side else (max(side - 1, 1), side, True)


def _text(parent: Element, tag: str, text: str) -> None:
    SubElement(parent, tag).text = xml_text(text)
