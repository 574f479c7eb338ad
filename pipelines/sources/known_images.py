"""The images that a dataset has, found by what an annotation tool calls them."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from pipelines.exports.names import clean_path
from pipelines.sources.archive_formats import is_image_name


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownImage:
    """One image of a dataset, without its bytes: what is needed to place annotations.

    Attributes:
        width, height: pixels of the stored frame.
        exif_orientation: 1 to 8.
    """

    image_id: str
    width: int
    height: int
    exif_orientation: int = 1


@dataclass(frozen=True, kw_only=True)
class KnownImages:
    """Images by id, and by the names that exports give them.

    Attributes:
        by_id: all of them.
    """

    by_id: dict[str, KnownImage]

    @classmethod
    def of(cls, images: Iterable[KnownImage]) -> KnownImages:
        return cls(by_id={image.image_id: image for image in images})

    @cached_property
    def _by_basename(self) -> dict[str, list[tuple[str, KnownImage]]]:
        found: dict[str, list[tuple[str, KnownImage]]] = {}
        for image in self.by_id.values():
            path = clean_path(image.image_id)
            found.setdefault(posixpath.basename(path), []).append((path, image))
        return found

    def find(self, name: str) -> KnownImage | None:
        """The one image of that id, or the one whose path ends with that name; None where several do.

        Names are compared as ``exports.names`` writes them: an export leaves out folders that all its images share,
        and characters that some system refuses.
        """
        if name in self.by_id:
            return self.by_id[name]
        found = self._named(name)
        return found[0] if len(found) == 1 else None

    def is_ambiguous(self, name: str) -> bool:
        """Whether several images have that name."""
        return name not in self.by_id and len(self._named(name)) > 1

    def _named(self, name: str) -> list[KnownImage]:
        path = clean_path(name)
        found = self._ending_with(path)
        if not found and is_image_name(path):  # an export gives a suffix to what has none
            found = self._ending_with(path.rpartition(".")[0])
        return found

    def _ending_with(self, path: str) -> list[KnownImage]:
        same = self._by_basename.get(posixpath.basename(path), [])
        return [image for own, image in same if own == path or own.endswith(f"/{path}")]


def missing(expected: Collection[str], found: Collection[str]) -> list[str]:
    """What was to come back and did not, sorted."""
    return sorted(set(expected) - set(found))
