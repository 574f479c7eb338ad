"""One peer writes a folder of images, with their COCO annotations where a file of them is given.

    python ingest.py webdataset|mds|huggingface FOLDER OUT images|digests|ANNOTATIONS

``digests`` adds the sha256 of each image, which boxmill always stores. Prints CPU and wall seconds without imports,
and a digest over all images as they are read back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODES = ("images", "digests")
Labels = dict[str, Any] | list[dict[str, Any]] | None


def samples(folder: str, mode: str) -> Iterator[tuple[str, bytes, Labels]]:
    objects: dict[str, list[dict[str, Any]]] = {}
    if mode not in MODES:
        annotations = mode
        with Path(annotations).open() as stream:
            whole = json.load(stream)
        names = {image["id"]: image["file_name"] for image in whole["images"]}
        objects = {name: [] for name in names.values()}
        for values in whole["annotations"]:
            objects[names[values["image_id"]]].append(values)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        image = Path(entry.path).read_bytes()
        match mode:
            case "images":
                yield entry.name, image, None
            case "digests":
                yield entry.name, image, {"sha256": hashlib.sha256(image).hexdigest()}
            case _:
                yield entry.name, image, objects[entry.name]


def webdataset(folder: str, out: str, mode: str) -> None:
    Path(out).mkdir(parents=True)
    with wds.ShardWriter(f"{out}/%06d.tar", maxcount=1024, maxsize=256 * 2**20, verbose=0) as writer:
        for name, image, objects in samples(folder, mode):
            labels = {} if objects is None else {"json": objects}
            writer.write({"__key__": name.removesuffix(".jpg"), "jpg": image, **labels})


def read_webdataset(out: str) -> Iterator[bytes]:
    for path in sorted(Path(out).iterdir()):
        with tarfile.open(path) as archive:
            yield from (archive.extractfile(member).read() for member in archive if member.name.endswith(".jpg"))


def mds(folder: str, out: str, mode: str) -> None:
    columns = {"id": "str", "image": "bytes"} | ({} if mode == "images" else {"objects": "json"})
    with MDSWriter(out=out, columns=columns, progress_bar=False) as writer:
        for name, image, objects in samples(folder, mode):
            writer.write({"id": name, "image": image} | ({} if objects is None else {"objects": objects}))


def read_mds(out: str) -> Iterator[bytes]:
    stored = LocalDataset(local=out)
    yield from (stored[i]["image"] for i in range(len(stored)))


def huggingface(folder: str, out: str, mode: str) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for name, image, objects in samples(folder, mode):
            row: dict[str, Any] = {"id": name, "image": {"bytes": image, "path": None}}
            match objects:
                case None:
                    yield row
                case dict():
                    yield {**row, **objects}
                case _:
                    yield {**row, "objects": [_row(values) for values in objects]}

    features: dict[str, Any] = {"id": datasets.Value("string"), "image": datasets.Image()}
    if mode == "digests":
        features["sha256"] = datasets.Value("string")
    elif mode != "images":
        features["objects"] = [
            {
                "id": datasets.Value("int64"),
                "category_id": datasets.Value("int64"),
                "bbox": [datasets.Value("float64")],
                "area": datasets.Value("float64"),
                "iscrowd": datasets.Value("bool"),
                "segmentation": datasets.Value("string"),
            }
        ]
    datasets.Dataset.from_generator(rows, features=datasets.Features(features), cache_dir=out)


def _row(values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: values[name] for name in ("id", "category_id", "bbox", "area")}
    return {**kept, "iscrowd": bool(values["iscrowd"]), "segmentation": json.dumps(values["segmentation"])}


def read_huggingface(out: str) -> Iterator[bytes]:
    (path,) = [f"{root}/{name}" for root, _, names in os.walk(out) for name in names if name.endswith(".arrow")]
    stored = datasets.Dataset.from_file(path).cast_column("image", datasets.Image(decode=False))
    yield from (row["bytes"] for row in stored["image"])


PEERS: dict[str, tuple[Callable[[str, str, str], None], Callable[[str], Iterator[bytes]]]] = {
    "webdataset": (webdataset, read_webdataset),
    "mds": (mds, read_mds),
    "huggingface": (huggingface, read_huggingface),
}


def main() -> None:
    peer, folder, out, mode = sys.argv[1:]
    write, read = PEERS[peer]
    with tempfile.TemporaryDirectory() as warm:  # whatever is imported or made at the first use is not measured
        (Path(warm) / "in").mkdir()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)[:8]:
            shutil.copy(entry.path, f"{warm}/in")
        write(f"{warm}/in", f"{warm}/out", "images")
    before, started = os.times(), time.perf_counter()
    write(folder, out, mode)
    after, wall = os.times(), time.perf_counter() - started
    digests = sorted(hashlib.sha256(image).hexdigest() for image in read(out))
    found = {
        "cpu": sum(after[:4]) - sum(before[:4]),
        "wall": wall,
        "images": len(digests),
        "digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    match sys.argv[1]:
        case "webdataset":
            import tarfile

            import webdataset as wds
        case "mds":
            from streaming import LocalDataset, MDSWriter
        case "huggingface":
            import datasets

            datasets.disable_progress_bars()
    main()
