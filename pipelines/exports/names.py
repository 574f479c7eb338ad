"""File names that are safe to write anywhere, from image ids that may be anything."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Sequence

from pipelines.sources.archive_formats import IMAGE_SUFFIXES, is_image_name

_UNSAFE = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_BYTES = 180  # of one part; file systems allow 255, and a suffix may follow


def safe_names(
    image_ids: Sequence[str],
    *,
    flat: bool = False,
    by_stem: bool = False,
    without: Collection[str] = (),
    taken: Collection[str] = (),
) -> dict[str, str]:
    """A relative path for every image id.

    No path is absolute or has ``..``, none has characters or device names that some system refuses, and no two are
    equal, not even where case does not count. Folders are kept, but for those that all images share.

    Args:
        image_ids: unique.
        flat: join folders and name with ``__`` instead, spaces become ``_``: such names are words in lists.
        by_stem: no two paths are equal without their suffix either: each image gets a text file beside it.
        without: folders to leave out wherever they occur.
        taken: paths that are given away.
    """
    parts = {image_id: _parts(image_id, without) for image_id in image_ids}
    shared = _shared_folders(list(parts.values()))
    given = _Taken(by_stem=by_stem)
    for path in taken:
        given.note(*_split_suffix(path))
    names = {}
    for image_id, found in parts.items():
        own = found[shared:]
        path = re.sub(r"\s", "_", "__".join(own)) if flat else "/".join(own)
        stem, suffix = _split_suffix(path)
        names[image_id] = given.add(stem, suffix)
    return names


def with_suffix(name: str, format_: str) -> str:
    """The name with the suffix of an image's format, where it has none."""
    return name if is_image_name(name) else f"{name}.{'jpg' if format_ == 'jpeg' else format_}"


def split_names(splits: Collection[str], *, unnamed: str = "all", without: Collection[str] = ()) -> dict[str, str]:
    """What every split of a dataset is called in file names.

    No name has a ``/``, is ``..`` or a device, and no two are equal, not even where case does not count. Most splits
    keep their own.

    Args:
        splits: of the whole dataset: one is then called the same in an export of it alone.
        unnamed: what the split without a name is called where no other one is; otherwise ``unnamed``.
        without: names that mean something else in the format.
    """
    cleaned = {split: _clean("_".join(_words(split)) or "split") for split in splits if split}
    # Whoever can keep the name has it, whatever others are made into.
    order = sorted(cleaned, key=lambda split: (cleaned[split] != split, split != split.casefold(), split))
    taken = {name.casefold() for name in without}
    names = {}
    for split in order:
        names[split] = _free(cleaned[split], taken)
    if "" in splits:
        names[""] = unnamed if unnamed.casefold() not in taken else _free("unnamed", taken)
    return names


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; it is afterwards."""
    for number in itertools.count(1):
        found = name if number == 1 else f"{name}_{number}"
        if found.casefold() not in taken:
            taken.add(found.casefold())
            return found
    raise AssertionError("unreachable")


def clean_path(image_id: str) -> str:
    """A path that is safe to write, before shared folders are left out and equal ones get numbers."""
    return "/".join(_parts(image_id, ()))


def _parts(image_id: str, without: Collection[str]) -> list[str]:
    *folders, name = _words(image_id) or ["image"]
    return [_clean(p) for p in folders if p not in without] + [_clean(name)]


def _words(path: str) -> list[str]:
    return [p for p in re.split(r"[/\\]", path) if p not in ("", ".", "..")]


def _clean(part: str) -> str:
    stem, suffix = _split_suffix(_UNSAFE.sub("_", part))
    stem = stem.strip(" .") or "_"
    if _DEVICE.fullmatch(stem):
        stem = f"_{stem}"
    if len((stem + suffix).encode("utf-8", "replace")) > _MAX_BYTES:
        digest = hashlib.sha256(part.encode("utf-8", "replace")).hexdigest()[:12]
        stem = stem.encode("utf-8", "replace")[: _MAX_BYTES // 2].decode("utf-8", "ignore") + f"-{digest}"
    return stem + suffix


def _split_suffix(path: str) -> tuple[str, str]:
    """Before and after the dot of an image's suffix; no suffix where it is none."""
    stem, dot, suffix = path.rpartition(".")
    return (stem, dot + suffix) if stem and f".{suffix.lower()}" in IMAGE_SUFFIXES else (path, "")


def _shared_folders(parts: Sequence[list[str]]) -> int:
    """How many leading folders are the same for all."""
    if not parts:
        return 0
    first, last = min(parts), max(parts)
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    return shared


class _Taken:
    """Names given away. One without a suffix gets its format's later, so its stem must be its own."""

    def __init__(self, *, by_stem: bool) -> None:
        self._by_stem = by_stem
        self._names: set[str] = set()
        self._stems: set[str] = set()
        self._bare: set[str] = set()

    def add(self, stem: str, suffix: str) -> str:
        for number in itertools.count(1):
            name = stem if number == 1 else f"{stem}-{number}"
            if self._is_free(name.casefold(), suffix.casefold()):
                break
        self.note(name, suffix)
        return name + suffix

    def note(self, stem: str, suffix: str) -> None:
        """The name is given away."""
        key = stem.casefold()
        self._names.add(key + suffix.casefold())
        self._stems.add(key)
        if not suffix:
            self._bare.add(key)

    def _is_free(self, stem: str, suffix: str) -> bool:
        if self._by_stem or not suffix:
            return stem not in self._stems
        return stem + suffix not in self._names and stem not in self._bare
