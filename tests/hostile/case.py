"""One hostile input and what must become of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Build = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What somebody sends us.

    Attributes:
        name: of the test.
        kind: of the source that reads it.
        build: makes the input in an empty folder and returns the source's options.
        images: ids that are in the dataset afterwards.
        left_out: images that are not, each with an entry in the ledger.
        objects: annotations in the dataset, None for any number.
        says: regular expression found in the ledger's entries or the quarantine's rows, or in the error.
        error: the whole input is refused with a ValueError or FileNotFoundError; nothing is committed.
        checks: looks at the records by image id.
    """

    name: str
    kind: str
    build: Build
    images: Sequence[str] = ()
    left_out: int = 0
    objects: int | None = None
    says: str = ""
    error: bool = False
    checks: Callable[[Mapping[str, Any]], None] | None = None


def picture(seed: int = 0, width: int = 32, height: int = 24, mode: str = "RGB") -> Image.Image:
    """A small picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def jpeg(seed: int = 0, **options: Any) -> bytes:
    return encoded(picture(seed), "JPEG", **options)


GOOD = "good.jpg"


def folder_of(files: Mapping[str, bytes]) -> Build:
    """A folder with these files and one good image, so that the dataset is not empty."""

    def build(folder: Path) -> Mapping[str, Any]:
        for name, content in {GOOD: jpeg(99), **files}.items():
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return {"uri": str(folder / "images")}

    return build


def file_of(name: str, content: Callable[[], bytes]) -> Build:
    """One archive file."""

    def build(folder: Path) -> Mapping[str, Any]:
        path = folder / name
        path.write_bytes(content())
        return {"uri": str(path)}

    return build


def coco_of(annotations: bytes | Mapping[str, Any]) -> Build:
    """A COCO file beside the two images ``a.jpg`` and ``b.jpg``, each 32 x 24."""

    def build(folder: Path) -> Mapping[str, Any]:
        images = folder / "images"
        images.mkdir()
        for number, name in enumerate(("a.jpg", "b.jpg")):
            (images / name).write_bytes(jpeg(number))
        content = annotations if isinstance(annotations, bytes) else json.dumps(annotations).encode()
        (folder / "instances_train.json").write_bytes(content)
        return {"annotations": str(folder / "instances_train.json"), "images": str(images)}

    return build
