"""What else is in COCO's JSON: LVIS's images without ``file_name``, captions, entries that are nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipelines.ledger import LedgerEntry, Subject


def path_of_url(coco_url: Any) -> str | None:
    """``http://images.cocodataset.org/train2017/000000391895.jpg`` -> ``train2017/000000391895.jpg``."""
    parts = urlsplit(coco_url).path.strip("/").split("/") if isinstance(coco_url, str) else []
    return "/".join(parts[-2:]) if len(parts) >= 2 and ".." not in parts else None


class NamedByUrl(dict[str, Any]):
    """An image whose ``file_name`` is ours, not its file's."""


def named_by_url(image: dict[str, Any]) -> dict[str, Any]:
    """An image with a ``file_name``: LVIS v1 has none, its place is the end of ``coco_url``."""
    if "file_name" in image:
        return image
    path = path_of_url(image.get("coco_url"))
    return image if path is None else NamedByUrl(image, file_name=path)


def is_caption(annotation: Any) -> bool:
    """Whether an entry of ``annotations`` is a sentence about the image, not an object in it."""
    return isinstance(annotation, Mapping) and "caption" in annotation and "bbox" not in annotation


def ignored_captions(count: int, where: str) -> LedgerEntry:
    """One entry for all captions of a file."""
    return LedgerEntry(
        subject="annotation",
        fate="dropped",
        reason="a caption is no object",
        image_id="",
        detail=f"{count} captions of {where}",
        annotations=count - 1,  # the entry itself counts as one
    )


def malformed(subject: Subject, split: str, text: str) -> LedgerEntry:
    """An element of ``images`` or ``annotations`` that is neither."""
    return LedgerEntry(
        subject=subject,
        fate="dropped",
        reason=f"not a COCO {subject}",
        image_id="",
        detail=f"split {split}: {text[:200]}",
    )
