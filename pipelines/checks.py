"""What is accepted as an image and as a box. Pure: bytes and arrays in, verdicts out."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.jpeg import plain_jpeg_size
from pipelines.ledger import Ledger, LedgerEntry
from pipelines.records import Annotations
from pipelines.run_lengths import fills_its_size

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_FORMAT_NAMES = {"MPO": "jpeg"}  # a JPEG with more pictures behind the first
_EXIF_ORIENTATION = 0x0112
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


# Attributes of these names are what a source could not put into the field of that name.
_UNDERSTOOD = frozenset({"id", "area", "iscrowd", "segmentation", "keypoints", "num_keypoints"})


class BadImage(ValueError):
    """Bytes that no decoder could turn into the whole image.

    Attributes:
        sha256: of the bytes, hex; None where there are none, or nobody has said.
    """

    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What the first bytes of an image file say: lower-case format, stored pixels, EXIF orientation 1..8."""

    format: str
    width: int
    height: int
    exif_orientation: int = 1


def probe_image(image: bytes) -> ImageHeader:
    """Read the header and check the end marker, without decoding pixels.

    Raises:
        BadImage: empty, unknown, too large (Pillow's bomb limit is an error here), or cut off.
    """
    if not image:
        raise BadImage("the file is empty")
    size = plain_jpeg_size(image)
    if size is not None and size[0] * size[1] <= (Image.MAX_IMAGE_PIXELS or 0):
        return ImageHeader(format="jpeg", width=size[0], height=size[1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
                name = _FORMAT_NAMES.get(str(opened.format), str(opened.format).lower())
                width, height = opened.size
                orientation = _orientation(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"more pixels than the limit of {Image.MAX_IMAGE_PIXELS}: {error}") from None
    except UnidentifiedImageError:
        raise BadImage(f"not a {', '.join(FORMATS)} file (it starts with {image[:8]!r})") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet in hostile bytes
        raise BadImage(f"unreadable header: {type(error).__name__}: {error}") from None
    if width < 1 or height < 1:
        raise BadImage(f"the header says {width}x{height} pixels")
    _check_end(name, image)
    return ImageHeader(format=name, width=width, height=height, exif_orientation=orientation)


def _orientation(opened: Image.Image) -> int:
    try:
        value = opened.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF is common and says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_end(name: str, image: bytes) -> None:
    """Raises BadImage where the format's end marker is missing: the file was cut."""
    match name:
        case "jpeg":
            whole = image.rfind(b"\xff\xd9") >= _jpeg_scan_start(image)
        case "png":
            whole = image.rfind(b"IEND\xaeB`\x82") >= 0
        case "gif":
            whole = image.rstrip(b"\x00").endswith(b";")
        case "webp":
            whole = len(image) >= 8 + int.from_bytes(image[4:8], "little")
        case _:
            whole = True
    if not whole:
        raise BadImage(f"cut off: the {name} end marker is missing")


def _jpeg_scan_start(image: bytes) -> int:
    """Where the picture's own data begins: an EXIF thumbnail before it has an end marker of its own."""
    position = 2
    while position + 4 <= len(image):
        if image[position] != 0xFF:
            return position
        marker = image[position + 1]
        if marker == 0xDA:
            return position
        if marker == 0xFF:
            position += 1
        elif marker in _JPEG_STANDALONE:
            position += 2
        else:
            position += 2 + int.from_bytes(image[position + 2 : position + 4], "big")
    return len(image)


def check_annotations(
    annotations: Annotations,
    *,
    width: int,
    height: int,
    category_ids: frozenset[int],
    ledger: Ledger,
    image_id: str,
    clip_tolerance: float = 1.0,
    mended: Mapping[str, str] | None = None,
) -> Annotations:
    """Leave out what cannot be an object and mend what leaves the image; tell the ledger.

    Dropped: a box that is not finite, has no area, lies outside the image, or is of an unknown category.
    Mended: of objects with the same id all but the first get a new one, and the old one becomes the attribute
    ``source_id``; a box that leaves the image by more than ``clip_tolerance`` pixels is clipped to it. Within the
    tolerance a box stays as the source wrote it: rounding of borders is no error. An RLE of another size than the
    image's, or one whose runs do not fill it, becomes an attribute, out of the way of whoever draws masks; what the
    source could not make sense of is one already. Sound masks, keypoints and areas are never changed.

    Args:
        annotations: as the source has them.
        width, height: of the stored image, pixels.
        category_ids: those of the label map.
        ledger: gets one count an object, and an entry for each that is dropped or mended.
        image_id: for the entries.
        clip_tolerance: pixels.
        mended: what the source itself already changed, by the object's place; see ``SourceItem``.
    Returns:
        What is kept, in the same order.
    """
    total = len(annotations)
    boxes = annotations.boxes_xywh
    keep = np.ones(total, np.bool_)

    def drop(bad: Any, reason: str) -> None:
        for i in np.flatnonzero(bad & keep):
            detail = f"box xywh {boxes[i].tolist()}, category {annotations.category_ids[i]}, image {width}x{height}"
            ledger.add(_entry("dropped", reason, image_id, int(annotations.ids[i]), detail))
        keep[bad] = False

    drop(~np.isfinite(boxes).all(axis=1), "box is not finite")
    known = np.array([category_id in category_ids for category_id in annotations.category_ids.tolist()], np.bool_)
    drop(~known, "unknown category")
    drop((boxes[:, 2:] <= 0).any(axis=1), "box has no area")

    clipped = _clip(boxes, width, height)
    drop((clipped[:, 2:] <= 0).any(axis=1), "box lies outside the image")
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    beyond = np.maximum(-low, high - np.array([width, height], np.float64)).max(axis=1, initial=0.0)
    clip = keep & (beyond > clip_tolerance)
    annotations = _set_aside_rles(annotations, (height, width))
    annotations, renamed = _rename_twins(annotations)
    changed = 0
    for i in np.flatnonzero(keep):
        odd = _odd(annotations.attributes[i]) if annotations.attributes else []
        reasons = [mended[str(i)]] if mended and str(i) in mended else []
        reasons += ["annotation id given twice, this one gets a new id"] if i in renamed else []
        reasons += ["box clipped to the image"] if clip[i] else []
        reasons += [f"{name} makes no sense and is kept as an attribute" for name in odd]
        if reasons:
            changed += 1
            detail = f"box xywh {boxes[i].tolist()}, image {width}x{height}"
            detail += f", the source's id {annotations.attributes[i]['source_id']}" if i in renamed else ""
            detail += f", box became {clipped[i].tolist()}" if clip[i] else ""
            detail += "".join(f", {name} {annotations.attributes[i][name]!r:.200}" for name in odd)
            ledger.add(_entry("mended", "; ".join(reasons), image_id, int(annotations.ids[i]), detail))
    ledger.imported("annotation", int(keep.sum()) - changed)

    if clip.any():
        annotations = replace(annotations, boxes_xywh=np.where(clip[:, None], clipped, boxes))
    return annotations if keep.all() else take(annotations, np.flatnonzero(keep))


def _odd(attributes: Mapping[str, Any]) -> list[str]:
    """What the source could not make sense of; a crowd flag may only be noted there."""
    found = sorted(_UNDERSTOOD & attributes.keys())
    return [name for name in found if name != "iscrowd" or attributes[name] not in (0, 1, None)]


def _rename_twins(annotations: Annotations) -> tuple[Annotations, frozenset[int]]:
    """Objects of an id that an earlier one has get ids above the largest; also their places."""
    ids = annotations.ids.tolist()
    if len(set(ids)) == len(ids):
        return annotations, frozenset()
    seen: set[int] = set()
    places = []
    for i, annotation_id in enumerate(ids):
        if annotation_id in seen:
            places.append(i)
        seen.add(annotation_id)
    renamed = annotations.ids.copy()
    free = (number for number in itertools.count(max(max(ids), 0) + 1 if max(ids) < 2**62 else 1) if number not in seen)
    attributes = [dict(a) for a in annotations.attributes or [{}] * len(ids)]
    for i in places:
        renamed[i] = next(free)
        attributes[i].setdefault("source_id", ids[i])
    return replace(annotations, ids=renamed, attributes=tuple(attributes)), frozenset(places)


def _set_aside_rles(annotations: Annotations, size: tuple[int, int]) -> Annotations:
    """RLEs that do not fill the image's height and width become the attribute ``segmentation``, as COCO has it."""
    given = enumerate(annotations.rles)
    wrong = [i for i, rle in given if rle is not None and (rle.size != size or not fills_its_size(rle))]
    if not wrong:
        return annotations
    rles = list(annotations.rles)
    attributes = [dict(a) for a in annotations.attributes or [{}] * len(annotations)]
    for i in wrong:
        rle = rles[i]
        assert rle is not None
        counts = rle.counts if isinstance(rle.counts, str) else list(rle.counts)
        attributes[i]["segmentation"] = {"size": list(rle.size), "counts": counts}
        rles[i] = None
    return replace(annotations, rles=tuple(rles), attributes=tuple(attributes))


def _clip(boxes_xywh: np.ndarray, width: int, height: int) -> np.ndarray:
    limit = np.array([width, height], np.float64)
    low = np.clip(boxes_xywh[:, :2], 0.0, limit)
    high = np.clip(boxes_xywh[:, :2] + boxes_xywh[:, 2:], 0.0, limit)
    return np.concatenate([low, high - low], axis=1)


def _entry(fate: str, reason: str, image_id: str, annotation_id: int, detail: str) -> LedgerEntry:
    return LedgerEntry(
        subject="annotation",
        fate=fate,  # type: ignore[arg-type]
        reason=reason,
        image_id=image_id,
        annotation_id=annotation_id,
        detail=detail,
    )


def take(annotations: Annotations, indices: np.ndarray) -> Annotations:
    """The objects at ``indices``, in that order."""

    def pick(values: tuple) -> tuple:
        return tuple(values[i] for i in indices) if values else ()

    return Annotations(
        ids=annotations.ids[indices],
        boxes_xywh=annotations.boxes_xywh[indices],
        category_ids=annotations.category_ids[indices],
        area=annotations.area[indices],
        iscrowd=annotations.iscrowd[indices],
        polygons=pick(annotations.polygons),
        rles=pick(annotations.rles),
        keypoints=pick(annotations.keypoints),
        num_keypoints=annotations.num_keypoints[indices],
        scores=None if annotations.scores is None else annotations.scores[indices],
        attributes=pick(annotations.attributes),
    )
