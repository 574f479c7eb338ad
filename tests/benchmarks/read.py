"""Reading beside WebDataset, MDS (mosaicml-streaming), Hugging Face streaming and bare torchvision decoding.

    make bench NAME=read

Decoded images per CPU second: 2,048 distinct photographs of COCO's mean size, shuffled, 2 loader workers (boxmill's
are threads, the others' are processes of torch's DataLoader), torchvision.io.decode_jpeg for all; the bare loop reads
files and decodes. boxmill compares every image with its sha256, and it and the bare loop keep freed memory, as training
does. "boxmill, Pillow" is with the decoder that training
uses, which torchvision's deprecation made Pillow. Every tool is a process of its own, in turns. Then one random image
beside its whole row group, and boxes and categories of 10,000 images with warm file caches. The exit status is 1
where a bar is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from pipelines.boxes import read_boxes
from pipelines.records import ImageRecord
from pipelines.shards import read_image, read_row_group
from pipelines.sources import open_source
from pipelines.versions import open_dataset
from tests.benchmarks.copies import copy_coco
from tests.benchmarks.peer_venv import PEERS, peer_versions, run_measured, run_peer
from tests.benchmarks.record import append_result, load_average, table
from workers.batches import decode_image
from workers.ingest import ingest
from workers.loader import RowGroupReader, epoch_plan, evaluation_batches, list_row_groups
from workers.memory import keep_freed_memory

# boxmill's rate by the other's; the better of the first two counts.
LEAST_OF_BETTER, LEAST_OF_HUGGINGFACE, LEAST_OF_BARE = 0.97, 1.4, 0.8
LEAST_RANDOM, MOST_BOXES_MS = 50.0, 30.0
Decode = Callable[..., Tensor]
BATCH, CACHE = 16, 512 * 2**20
IMAGES, LABELLED = 2_048, 10_000


def own_batches(dataset: str, decode: Decode) -> Iterator[list[tuple[ImageRecord, Tensor]]]:
    groups = list_row_groups(open_dataset(dataset), "train")
    reader = RowGroupReader(groups, max_bytes=CACHE)
    sizes = [len(group.image_ids) for group in groups]
    plan = epoch_plan(sizes, batch_size=BATCH, epoch=0, seed=0, world=1, rank=0).reshape(-1, 2)
    samples = [(int(group), int(place)) for group, place in plan[: sum(sizes)]]
    return evaluation_batches(reader, samples, batch_size=BATCH, threads=2, decode=decode)


def fast_decode(image: bytes, *, name: str = "") -> Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8), mode=ImageReadMode.RGB)


def own_read(dataset: str, decode: Decode) -> dict[str, Any]:
    """As ``peers/read.py`` reads: CPU and wall seconds, and a digest over names and some pixels."""
    torch.set_num_threads(1)
    keep_freed_memory()
    before, started = os.times(), time.perf_counter()
    seen = [
        (r.image_id, int(image[:, ::37, ::37].sum())) for batch in own_batches(dataset, decode) for r, image in batch
    ]
    wall, after = time.perf_counter() - started, os.times()
    assert seen != sorted(seen), "not shuffled"
    digest = hashlib.sha256(json.dumps(sorted(seen)).encode()).hexdigest()
    return {"cpu": sum(after[:4]) - sum(before[:4]), "wall": wall, "images": len(seen), "digest": digest}


def bare_read(folder: str) -> dict[str, Any]:
    """Files decoded one after the other: nothing but the decoder, and the look at some pixels that all take."""
    torch.set_num_threads(1)
    keep_freed_memory()
    paths = sorted(Path(folder).iterdir())
    random.Random(0).shuffle(paths)
    before, started = os.times(), time.perf_counter()
    total = 0
    for path in paths:
        total += int(fast_decode(path.read_bytes())[:, ::37, ::37].sum()) >= 0
    wall, after = time.perf_counter() - started, os.times()
    return {"cpu": sum(after[:4]) - sum(before[:4]), "wall": wall, "images": total, "digest": ""}


def compare(folder: Path, dataset: str, work: Path, rounds: int) -> list[dict[str, dict[str, Any]]]:
    """One mapping of tool to measurement a round."""
    own = [sys.executable, "-m", "tests.benchmarks.read", "--own"]
    tools: dict[str, Callable[[], dict[str, Any]]] = {
        "boxmill": lambda: run_measured([*own, "boxmill", dataset]),
        "boxmill, Pillow": lambda: run_measured([*own, "pillow", dataset]),
        "bare torchvision": lambda: run_measured([*own, "bare", str(folder)]),
    }
    for peer in PEERS:
        run_peer("read", peer, str(work / peer), "prepare", str(folder))
        tools[peer] = lambda peer=peer: run_peer("read", peer, str(work / peer), "read", str(folder))  # type: ignore[misc]
    runs = []
    for number in range(rounds):
        order = [*tools][number % len(tools) :] + [*tools][: number % len(tools)]
        found = {name: tools[name]() for name in order}
        assert {run["images"] for run in found.values()} == {len(list(folder.iterdir()))}, "an image is missing"
        assert len({run["digest"] for run in found.values()} - {""}) == 1, "the pixels differ"
        runs.append(found)
    return runs


def random_image_ratio(dataset: str) -> tuple[float, float, float]:
    """CPU of one random image through its row group by its own range read, and both in ms; indexes are warm."""
    opened = open_dataset(dataset)
    groups = opened.row_groups()
    places = opened.index().to_pylist()
    rng = random.Random(0)
    ratios, images, whole = [], [], []
    read_image(opened.shards[0], 0)
    for shard in opened.shards:
        read_image(shard, 0)
    for _ in range(15):
        group = rng.choice(groups)
        number = opened.shards.index(group.shard)
        rows = [p["row"] for p in places if p["shard"] == number and p["row_group"] == group.row_group]
        chosen = rng.choices(rows, k=40)
        read_row_group(group)  # its labels and footer are warm too
        started = time.process_time()
        records = read_row_group(group)
        middle = time.process_time()
        found = [read_image(group.shard, row) for row in chosen]
        ended = time.process_time()
        assert found == [records[row - rows[0]].image for row in chosen], "another image came"
        whole.append(1000 * (middle - started))
        images.append(1000 * (ended - middle) / len(chosen))
        ratios.append(whole[-1] / images[-1])
    return median(ratios), median(images), median(whole)


def boxes_ms(dataset: str, expected: int) -> float:
    """CPU ms of all boxes and categories, file caches warm."""
    times = []
    for _ in range(7):
        started = time.process_time()
        boxes = read_boxes(open_dataset(dataset))
        times.append(1000 * (time.process_time() - started))
        assert (len(boxes.image_ids), len(boxes.boxes_xywh), len(boxes.category_ids)) == (LABELLED, expected, expected)
    return median(times[1:])


def rows_of(runs: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "tool": name,
            "images/CPU s": f"{median(run[name]['images'] / run[name]['cpu'] for run in runs):.0f}",
            "images/s": f"{median(run[name]['images'] / run[name]['wall'] for run in runs):.0f}",
            **{
                f"boxmill by it, {clock}": f"{median(r[name][clock] / r['boxmill'][clock] for r in runs):.2f}"
                for clock in ("cpu", "wall")
            },
        }
        for name in runs[0]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--work", type=Path, default=Path("bench-out/read"))
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    parser.add_argument("--own", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.own:
        tool, path = arguments.own
        warnings.simplefilter("ignore", DeprecationWarning)
        decoders: dict[str, Decode] = {"boxmill": fast_decode, "pillow": decode_image}
        print(json.dumps(own_read(path, decoders[tool]) if tool in decoders else bare_read(path)))
        return 0
    mini = Path(os.environ.get("BOXMILL_DATA", "")).absolute() / "coco-mini"
    if not (mini / "annotations").is_dir():
        print("BOXMILL_DATA must name the folder that holds coco-mini/", file=sys.stderr)
        return 2
    load_before = load_average()
    work = arguments.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    annotations = copy_coco(mini, work / "copies", arguments.images)
    source = open_source("coco", annotations=str(annotations), images=str(work / "copies/images"), split="train")
    dataset = ingest(source, str(work / "dataset")).reference

    runs = compare(work / "copies/images", dataset, work, arguments.rounds)
    better = median(min(r["webdataset"]["cpu"], r["mds"]["cpu"]) / r["boxmill"]["cpu"] for r in runs)
    huggingface = median(r["huggingface"]["cpu"] / r["boxmill"]["cpu"] for r in runs)
    bare = median(r["bare torchvision"]["cpu"] / r["boxmill"]["cpu"] for r in runs)
    ratio, image_ms, group_ms = random_image_ratio(dataset)

    labelled = copy_coco(mini, work / "labelled", LABELLED, tiny=True)
    many = open_source("coco", annotations=str(labelled), images=str(work / "labelled/images"), split="train")
    version = ingest(many, str(work / "many"))
    milliseconds = boxes_ms(version.reference, version.num_objects)

    bars = {
        "better_of_webdataset_mds": (better, LEAST_OF_BETTER),
        "huggingface": (huggingface, LEAST_OF_HUGGINGFACE),
        "bare_torchvision": (bare, LEAST_OF_BARE),
        "random_image": (ratio, LEAST_RANDOM),
        "boxes_ms": (-milliseconds, -MOST_BOXES_MS),
    }
    missed = [f"{name} {abs(value):.2f} ({abs(bar)})" for name, (value, bar) in bars.items() if value < bar]
    body = table(rows_of(runs))
    body += f"\n\nOne random image {image_ms:.3f} ms of CPU, its row group {group_ms:.1f} ms. Boxes and categories of "
    body += f"{LABELLED} images ({version.num_objects} objects): {milliseconds:.1f} ms of CPU."
    body += f"\n\nPeers: {peer_versions()}. Bars missed: {', '.join(missed) or 'none'}."
    print(body)
    if not arguments.no_record:
        append_result("read", body, load_before=load_before)
    shutil.rmtree(work, ignore_errors=True)
    print("read: " + " ".join(f"{name}={abs(value):.2f}" for name, (value, _) in bars.items()), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
