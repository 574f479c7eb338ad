"""Predictions of images that lie where they are, made without Ray or a model."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.checks import BadImage, probe_image
from pipelines.decoding import decode_rgb
from pipelines.ledger import Ledger
from pipelines.predictions import ArchivePlace, PredictionSet, commit_predictions, open_predictions, write_predictions
from pipelines.records import Annotations
from pipelines.schema import LabelRow
from pipelines.sources.archive import open_archive
from pipelines.sources.archive_formats import Member
from pipelines.storage import Store
from tests.making import LABEL_MAP


def one_box(score: float) -> Annotations:
    return Annotations.from_boxes(np.array([[2.0, 3.0, 10.0, 4.0]]), np.array([7]), scores=np.array([score]))


def write_archive(path: Path, images: dict[str, bytes]) -> None:
    """A folder, tar, tar.gz or zip, as its suffix says; every other member of a zip is stored as it is."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for at, (name, image) in enumerate(images.items()):
                archive.writestr(name, image, compress_type=zipfile.ZIP_STORED if at % 2 else None)
    elif path.suffix in (".tar", ".gz"):
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
            for name, image in images.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(image)
                tar.addfile(entry, io.BytesIO(image))
    else:
        for name, image in images.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(image)


def label_archive(uri: str, out: str) -> PredictionSet:
    """Every image of a folder or archive with one box, its score falling from .95; what is no image has failed."""
    archive = open_archive(uri)
    rows, places = [], []
    for number, member in enumerate(m for m in archive.members() if isinstance(m, Member)):
        found = archive.read(member)
        rows.append(row_of(number, member.name, found.image))
        places.append(ArchivePlace(source=uri, member=member.name, offset=found.offset, length=found.length))
    return commit_rows(out, rows, places, {"kind": "archive", "uri": uri})


def row_of(number: int, name: str, image: bytes) -> LabelRow:
    error, width, height = None, 0, 0
    try:
        header = probe_image(image)
        decode_rgb(image)
        width, height = header.width, header.height
    except BadImage as bad:
        error = f"decode: BadImage: {bad}"
    return LabelRow(
        image_id=name,
        row=number,
        row_group=0,
        split="",
        coco_image_id=number + 1,
        width=width,
        height=height,
        annotations=one_box(0.95 - 0.05 * number) if error is None else None,
        status="ok" if error is None else "failed",
        error=error,
        input_sha256=hashlib.sha256(image).hexdigest(),
    )


def commit_rows(out: str, rows: list[LabelRow], places: list[ArchivePlace], where: dict[str, Any]) -> PredictionSet:
    """In files of three rows, as a labelling run leaves them."""
    files = [
        write_predictions(Store.open(out), "pred", "archive-1", rows[first : first + 3], places[first : first + 3])
        for first in range(0, len(rows), 3)
    ]
    made = commit_predictions(
        *(out, "pred", files),
        plan_id="p",
        label_map=LABEL_MAP,
        images_version=None,
        ledger=Ledger(),
        provenance={"input": where},
    )
    return open_predictions(made.reference)
