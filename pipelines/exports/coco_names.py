"""What images are called in COCO files, and in the folder beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.exports.names import safe_names, with_suffix
from pipelines.sources.coco_kinds import path_of_url

_MAX_BYTES = 250  # of one part of a path


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedImage:
    """What an image could be called by.

    Attributes:
        extra: the source's own values.
    """

    image_id: str
    url: str
    format: str
    extra: Mapping[str, Any]


def coco_file_names(
    images: Iterable[NamedImage], *, by_url: bool = False, taken: Collection[str] = ()
) -> dict[str, str]:
    """A relative path for every image id; no two are equal, and none leads out of its folder.

    It is the source's own ``file_name``, or else the id. Where these are no paths, or are those of others, it is a
    name as other exports give them.

    Args:
        images: of one folder.
        by_url: the end of the URL comes before the id, as in LVIS.
        taken: paths that are given away.
    """
    ways = [_own_name, _end_of_url, _id] if by_url else [_own_name, _id]
    waiting = {image.image_id: image for image in images}
    order = list(waiting)
    used = set(taken)
    names: dict[str, str] = {}
    for way in ways:
        found = _found(waiting, way, used)
        names |= found
        used |= set(found.values())
        waiting = {image_id: image for image_id, image in waiting.items() if image_id not in found}
    for image_id, name in safe_names(list(waiting), taken=used).items():
        names[image_id] = with_suffix(name, waiting[image_id].format)
    return {image_id: names[image_id] for image_id in order}


def own_file_name(image_id: str, extra: Mapping[str, Any]) -> str | None:
    """The ``file_name`` of a COCO source, with which the image's id ends: in a table such a column may be anything."""
    name = extra.get("file_name")
    return name if isinstance(name, str) and f"/{image_id}".endswith(f"/{name}") else None


_Way = Callable[[NamedImage], str | None]


def _found(images: Mapping[str, NamedImage], way: _Way, used: Collection[str]) -> dict[str, str]:
    """Names that are paths, and nobody else's."""
    offered = {image_id: way(image) for image_id, image in images.items()}
    counts = Counter(offered.values())
    return {
        image_id: name
        for image_id, name in offered.items()
        if name is not None and counts[name] == 1 and name not in used and _is_path(name)
    }


def _own_name(image: NamedImage) -> str | None:
    return own_file_name(image.image_id, image.extra)


def _end_of_url(image: NamedImage) -> str | None:
    return path_of_url(image.extra.get("coco_url", image.url))


def _id(image: NamedImage) -> str | None:
    return image.image_id


def _is_path(name: str) -> bool:
    """Whether a file below a folder can be called so, exactly so."""
    parts = name.split("/")
    return (
        not {"", ".", ".."} & set(parts)
        and "\0" not in name
        and all(len(part.encode("utf-8", "replace")) <= _MAX_BYTES for part in parts)
    )
