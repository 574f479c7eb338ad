"""One peer reads its images back, shuffled and decoded, with 2 loader workers.

    python read.py webdataset|mds|huggingface WORK prepare|read IMAGES

``prepare`` writes the folder IMAGES in the peer's format to WORK. ``read`` prints CPU and wall seconds (workers
included, imports not), the number of images, and a digest over their names and some of their pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg

BATCH, BUFFER = 16, 512


def decode(image: bytes) -> Tensor:
    """The same decoder for all."""
    return decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8), mode=ImageReadMode.RGB)


def some_pixels(image: Tensor) -> int:
    return int(image[:, ::37, ::37].sum())


def as_list(batch: list[Any]) -> list[Any]:
    return batch


def prepare_webdataset(images: str, work: str) -> None:
    with wds.ShardWriter(f"{work}/%06d.tar", maxcount=1024, verbose=0) as writer:
        for path in sorted(Path(images).iterdir()):
            writer.write({"__key__": path.stem, "jpg": path.read_bytes()})


def _decode_webdataset(sample: dict[str, Any]) -> tuple[str, Tensor]:
    return f"{sample['__key__']}.jpg", decode(sample["jpg"])


def webdataset(work: str) -> DataLoader[Any]:
    urls = sorted(map(str, Path(work).glob("*.tar")))
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(BUFFER).map(_decode_webdataset)
    return DataLoader(dataset, batch_size=BATCH, num_workers=2, collate_fn=as_list)


def prepare_mds(images: str, work: str) -> None:
    with streaming.MDSWriter(out=work, columns={"id": "str", "image": "bytes"}, progress_bar=False) as writer:
        for path in sorted(Path(images).iterdir()):
            writer.write({"id": path.name, "image": path.read_bytes()})


def mds(work: str) -> DataLoader[Any]:
    class Decoded(streaming.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return sample["id"], decode(sample["image"])

    streaming.base.util.clean_stale_shared_memory()
    return DataLoader(
        Decoded(local=work, shuffle=True, batch_size=BATCH), batch_size=BATCH, num_workers=2, collate_fn=as_list
    )


def prepare_huggingface(images: str, work: str) -> None:
    paths = sorted(Path(images).iterdir())
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    for first in range(0, len(paths), 1024):
        part = paths[first : first + 1024]
        rows = {"id": [p.name for p in part], "image": [{"bytes": p.read_bytes(), "path": None} for p in part]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(f"{work}/{first:06d}.parquet")


def huggingface(work: str) -> DataLoader[Any]:
    files = sorted(map(str, Path(work).glob("*.parquet")))
    stream = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, cache_dir=f"{work}/cache"
    )
    stream = stream.cast_column("image", datasets.Image(decode=False)).shuffle(seed=0, buffer_size=BUFFER)
    return DataLoader(stream, batch_size=BATCH, num_workers=2, collate_fn=_decode_rows)


def _decode_rows(rows: list[dict[str, Any]]) -> list[tuple[str, Tensor]]:
    # In the worker, like all collating.
    return [(row["id"], decode(row["image"]["bytes"])) for row in rows]


def batches(peer: str, work: str) -> Iterator[list[tuple[str, Tensor]]]:
    match peer:
        case "webdataset":
            yield from webdataset(work)
        case "mds":
            yield from mds(work)
        case _:
            yield from huggingface(work)


def main() -> None:
    peer, work, what, images = sys.argv[1:]
    torch.set_num_threads(1)
    if what == "prepare":
        Path(work).mkdir(parents=True)
        {"webdataset": prepare_webdataset, "mds": prepare_mds, "huggingface": prepare_huggingface}[peer](images, work)
        print("{}")
        return
    before, started = os.times(), time.perf_counter()
    seen = [(name, some_pixels(image)) for batch in batches(peer, work) for name, image in batch]
    wall, after = time.perf_counter() - started, os.times()
    assert seen != sorted(seen), "not shuffled"
    found = {
        "cpu": sum(after[:4]) - sum(before[:4]),
        "wall": wall,
        "images": len(seen),
        "digest": hashlib.sha256(json.dumps(sorted(seen)).encode()).hexdigest(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    match sys.argv[1]:
        case "webdataset":
            import webdataset as wds
        case "mds":
            import streaming
        case "huggingface":
            import datasets

            datasets.disable_progress_bars()
    main()
