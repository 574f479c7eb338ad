"""Many distinct photographs of COCO's mean size: coco-mini over and over, each copy told apart by a JPEG comment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPLITS = ("train2017", "val2017")


def copy_coco(mini: Path, folder: Path, count: int, *, tiny: bool = False) -> Path:
    """Make ``folder/images`` and ``folder/instances_train.json`` of ``count`` images; what is there already stays.

    Args:
        mini: the folder of coco-mini.
        folder: made where there is none.
        count: images, each with its annotations, ids counted anew.
        tiny: keep the annotations and sizes, but of the pictures only their headers and end markers.
    Returns:
        The annotation file.
    """
    path = folder / f"instances_train_{count}.json"
    if path.exists():
        return path
    (folder / "images").mkdir(parents=True, exist_ok=True)
    originals = [image for split in SPLITS for image in _read(mini, split)]
    categories = json.loads((mini / "annotations" / f"instances_{SPLITS[0]}.json").read_text())["categories"]
    images, annotations = [], []
    for i in range(1, count + 1):
        entry, content, objects = originals[i % len(originals)]
        name = f"{i:012d}.jpg"
        copy = folder / "images" / name
        if not copy.exists():
            copy.write_bytes(with_comment(header_only(content) if tiny else content, name))
        images.append({**entry, "id": i, "file_name": name})
        first = len(annotations) + 1
        annotations += [{**values, "id": first + k, "image_id": i} for k, values in enumerate(objects)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    path.with_suffix(".part").write_text(json.dumps(whole))
    return path.with_suffix(".part").rename(path)


def with_comment(jpeg: bytes, text: str) -> bytes:
    """The JPEG with a comment segment behind its start marker: other bytes, the same pixels."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def header_only(jpeg: bytes) -> bytes:
    """The JPEG up to where its picture begins, and the end marker: what a check of headers takes for whole."""
    position = 2
    while jpeg[position + 1] != 0xDA:
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return jpeg[: position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")] + b"\xff\xd9"


def _read(mini: Path, split: str) -> list[tuple[dict[str, Any], bytes, list[dict[str, Any]]]]:
    whole = json.loads((mini / "annotations" / f"instances_{split}.json").read_text())
    objects: dict[int, list[dict[str, Any]]] = {}
    for values in whole["annotations"]:
        objects.setdefault(values["image_id"], []).append(values)
    return [
        (entry, (mini / split / entry["file_name"]).read_bytes(), objects.get(entry["id"], []))
        for entry in whole["images"]
    ]
