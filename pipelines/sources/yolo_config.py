"""``data.yaml`` of a YOLO data set: where its images are, what its classes and keypoints are called."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.records import Category, LabelMap
from pipelines.storage import absolute, redact, split_uri

SPLITS = ("train", "val", "test")
_MAX_DEPTH = 20
_MAX_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloConfig:
    """What one ``data.yaml`` says.

    Attributes:
        root: URI that ``places`` are relative to.
        places: split -> paths of folders of images, or of lists of images (``.txt``), as written.
        names: class names by class number.
        kpt_shape: number of keypoints and 2 or 3 numbers each, or None.
        flip_idx: for each keypoint the one that takes its place in a mirror, or None.
        kpt_names: class number -> keypoint names.
    """

    root: str
    places: Mapping[str, tuple[str, ...]]
    names: Mapping[int, str]
    kpt_shape: tuple[int, int] | None
    flip_idx: tuple[int, ...] | None
    kpt_names: Mapping[int, tuple[str, ...]]

    def label_map(self) -> LabelMap:
        """Category ids are YOLO's class numbers."""
        extra: dict[str, Any] = {}
        if self.kpt_shape:
            extra = {"kpt_shape": list(self.kpt_shape)} | ({"flip_idx": list(self.flip_idx)} if self.flip_idx else {})
        return LabelMap(
            categories=tuple(
                Category(category_id=number, name=name, keypoints=self._keypoints(number), extra=extra)
                for number, name in sorted(self.names.items())
            )
        )

    def _keypoints(self, number: int) -> tuple[str, ...]:
        if not self.kpt_shape:
            return ()
        named = self.kpt_names.get(number, ())
        return named if len(named) == self.kpt_shape[0] else _invented_names(self.kpt_shape[0], self.flip_idx)


def _invented_names(count: int, flip_idx: Sequence[int] | None) -> tuple[str, ...]:
    """Names from which the label map finds the same pairs to swap in a mirror: ``left_1`` and ``right_1``."""
    names = [f"point_{i}" for i in range(count)]
    for i, j in enumerate(flip_idx or ()):
        if i < j < count:
            names[i], names[j] = f"left_{i}", f"right_{i}"
    return tuple(names)


def read_config(uri: str) -> YoloConfig:
    """Read a ``data.yaml``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not YAML, or lacks classes or images.
    """
    where = redact(uri)
    values = _load(uri, where)
    folder = absolute(uri).rpartition("/")[0]
    places = {split: _paths(values[split], where) for split in SPLITS if values.get(split)}
    if "val" not in places and values.get("validation"):
        places["val"] = _paths(values["validation"], where)
    if not places:
        raise ValueError(f"{where} names no images: it needs `train`, `val` or `test`")
    kpt_shape = _integers(values.get("kpt_shape"), "kpt_shape", where)
    if kpt_shape is not None and (len(kpt_shape) != 2 or not 0 < kpt_shape[0] <= 10_000 or kpt_shape[1] not in (2, 3)):
        raise ValueError(f"{where}: kpt_shape must be [keypoints, 2 or 3], not {values['kpt_shape']}")
    flip_idx = _integers(values.get("flip_idx"), "flip_idx", where)
    if kpt_shape and flip_idx and sorted(flip_idx) != list(range(kpt_shape[0])):
        raise ValueError(f"{where}: flip_idx must hold each of 0 to {kpt_shape[0] - 1} once, not {values['flip_idx']}")
    return YoloConfig(
        root=resolve(folder, str(values.get("path") or "")),
        places=places,
        names=_names(values, where),
        kpt_shape=(kpt_shape[0], kpt_shape[1]) if kpt_shape else None,
        flip_idx=flip_idx,
        kpt_names=_keypoint_names(values.get("kpt_names")),
    )


def resolve(folder: str, path: str) -> str:
    """A path as written in a file in ``folder``, as a URI."""
    path = path.replace("\\", "/")
    if "://" in path or path.startswith("/"):
        return absolute(path)
    scheme, separator, rest = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(f"{rest}/{path}")


def _load(uri: str, where: str) -> dict[str, Any]:
    store, name = split_uri(uri)
    if store.stat(name).size > _MAX_BYTES:
        raise ValueError(f"{where} has more than {_MAX_BYTES} bytes; that is no data.yaml")
    try:
        text = store.read_bytes(name).decode("utf-8-sig")
        _check_plain(text, where)
        # The base loader leaves every scalar a string: a class called `no` stays one.
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not YAML: {str(error)[:300]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a data.yaml: it needs `names` and `train`")
    return values


def _check_plain(text: str, where: str) -> None:
    """An alias can make a small file mean a huge value, and deep nesting take minutes: a data.yaml needs neither."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        match event:
            case yaml.AliasEvent():
                raise ValueError(f"{where} has YAML aliases (*name), which are not read; write the values out")
            case yaml.CollectionStartEvent():
                depth += 1
            case yaml.CollectionEndEvent():
                depth -= 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"{where} is nested more than {_MAX_DEPTH} deep; that is no data.yaml")


def _paths(value: Any, where: str) -> tuple[str, ...]:
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{where}: images are given as a folder, a list of folders or a .txt file, not {value!r:.200}")
    return tuple(paths)


def _names(values: Mapping[str, Any], where: str) -> dict[int, str]:
    names = values.get("names")
    if isinstance(names, str) and names:  # YOLOv3's: a file of names, one a line
        raise ValueError(f"{where}: `names` must be a list or a mapping, not the file {names!r}; write the names out")
    if not names and str(values.get("nc", "")).isdecimal() and int(values["nc"]) <= 100_000:
        return {i: f"class{i}" for i in range(int(values["nc"]))}
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    found = {int(number): name for number, name in pairs if str(number).isdecimal() and isinstance(name, str)}
    if not found or len(found) != len(names or ()):
        raise ValueError(f"{where}: `names` must give each class number a name, e.g. `names: [cat, dog]`")
    return found


def _integers(value: Any, key: str, where: str) -> tuple[int, ...] | None:
    if value in (None, "", []):
        return None
    if not isinstance(value, list) or not all(isinstance(v, str) and v.isdecimal() for v in value):
        raise ValueError(f"{where}: {key} must be a list of whole numbers, not {value!r:.200}")
    return tuple(int(v) for v in value)


def _keypoint_names(value: Any) -> dict[int, tuple[str, ...]]:
    if not isinstance(value, dict):
        return {}
    return {
        int(number): tuple(str(name) for name in names)
        for number, names in value.items()
        if str(number).isdecimal() and isinstance(names, list)
    }
