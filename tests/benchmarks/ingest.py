"""Ingestion beside a plain copy with sha256, WebDataset, MDS (mosaicml-streaming) and Hugging Face `from_generator`.

    make bench NAME=ingest

2,048 distinct photographs of COCO's mean size, one process, every tool in a process of its own, in turns. boxmill
always checks headers and end markers, takes the sha256 of every image, names shards by their content and syncs them to
the disk. Three jobs: ``images`` (peers store the bare bytes), ``digests`` (peers also store each image's sha256, as
boxmill does) and ``labels`` (a COCO file is read and stored too). Rates are quoted as boxmill's by the other's.
``least`` is no tool: it reads, takes the sha256 and appends to one file, which whoever stores images with their digests
does at least; how many times as fast as a peer it is bounds what any such tool can be.
Then two warm Ray workers beside one on 20,480 images. The exit status is 1 where a bar on the CPU ratios of the job
``digests``, or on the wall ratio of the workers, is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.sources import Source, open_source
from pipelines.versions import open_dataset
from tests.benchmarks.copies import copy_coco
from tests.benchmarks.peer_venv import PEERS, peer_versions, run_measured, run_peer
from tests.benchmarks.record import append_result, load_average, table
from workers.cluster import ray_session
from workers.ingest import ingest
from workers.memory import keep_freed_memory

BARS = {"copy": 0.45, "webdataset": 0.95, "mds": 1.3, "huggingface": 4.0}
LEAST_SPEEDUP = 1.6
JOBS = ("images", "digests", "labels")
FEW, MANY = 2_048, 20_480


def copy_images(folder: Path, out: Path) -> None:
    """What any importer must do at least: read, take the sha256, write."""
    out.mkdir(parents=True)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        image = Path(entry.path).read_bytes()
        hashlib.sha256(image).hexdigest()
        (out / entry.name).write_bytes(image)


def append_images(folder: Path, out: Path) -> list[int]:
    """The least that storing images with their digests takes; the images' lengths, so that they can be read back."""
    out.mkdir(parents=True)
    lengths = []
    with (out / "all").open("wb", buffering=0) as stored, (out / "digests").open("w") as digests:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            image = Path(entry.path).read_bytes()
            digests.write(hashlib.sha256(image).hexdigest())
            lengths.append(stored.write(image))
    return lengths


def split_images(stored: Path, lengths: list[int]) -> Iterator[bytes]:
    with stored.open("rb") as stream:
        yield from (stream.read(length) for length in lengths)


def source_of(folder: Path, annotations: str | None) -> Source:
    if annotations is None:
        return open_source("archive", uri=str(folder))
    return open_source("coco", annotations=annotations, images=str(folder), split="train")


def own_job(tool: str, folder: Path, out: Path, annotations: str | None) -> dict[str, Any]:
    """Copy, append or ingest in this process: CPU and wall seconds, and a digest over the images as read back."""
    with tempfile.TemporaryDirectory() as warm:  # whatever is imported or made at the first use is not measured
        (Path(warm) / "in").mkdir()
        for path in sorted(folder.iterdir())[:8]:
            shutil.copy(path, f"{warm}/in")
        ingest(source_of(Path(warm) / "in", None), f"{warm}/out")
    source = source_of(folder, annotations)
    before, started = os.times(), time.perf_counter()
    lengths: list[int] = []
    match tool:
        case "copy":
            copy_images(folder, out)
        case "least":
            lengths = append_images(folder, out)
        case _:
            keep_freed_memory()  # as the command does
            ingest(source, str(out))
    after, wall = os.times(), time.perf_counter() - started
    images: Iterator[bytes]
    match tool:
        case "copy":
            images = (path.read_bytes() for path in out.iterdir())
        case "least":
            images = split_images(out / "all", lengths)
        case _:
            dataset = open_dataset(str(out))
            assert annotations is None or dataset.num_objects > 0
            images = (record.image for record in dataset.records())
    digests = sorted(hashlib.sha256(image).hexdigest() for image in images)
    cpu = sum(after[:4]) - sum(before[:4])
    return {"cpu": cpu, "wall": wall, "images": len(digests), "digest": _digest(digests)}


def _digest(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def compare(job: str, folder: Path, annotations: str, work: Path, rounds: int) -> list[dict[str, Any]]:
    """One row a tool: median seconds, and the medians of the ratios of rates within a round."""
    mode = annotations if job == "labels" else job

    def own(tool: str) -> Callable[[Path], dict[str, Any]]:
        given = [mode] if job == "labels" else []
        command = [sys.executable, "-m", "tests.benchmarks.ingest", "--own", tool, str(folder)]
        return lambda out: run_measured([*command, str(out), *given])

    tools: dict[str, Callable[[Path], dict[str, Any]]] = {name: own(name) for name in ("boxmill", "copy", "least")}
    for peer in PEERS:
        tools[peer] = lambda out, peer=peer: run_peer("ingest", peer, str(folder), str(out), mode)  # type: ignore[misc]
    runs: list[dict[str, dict[str, Any]]] = []
    for number in range(rounds):
        # Each tool is first in its turn, so that none always follows the same one.
        order = [*tools][number % len(tools) :] + [*tools][: number % len(tools)]
        found = {name: _fresh(tools[name], work / "out") for name in order}
        assert len({(run["images"], run["digest"]) for run in found.values()}) == 1, f"{job}: the outputs differ"
        runs.append(found)
    return [_row(job, name, runs) for name in tools]


def _fresh(tool: Callable[[Path], dict[str, Any]], out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # nobody pays for what another left to write
    try:
        return tool(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _row(job: str, name: str, runs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"job": job, "tool": name}
    for clock in ("cpu", "wall"):
        row[f"{clock} ms/image"] = f"{median(1000 * r[name][clock] / r[name]['images'] for r in runs):.3f}"
    for clock in ("cpu", "wall"):
        row[f"boxmill by it, {clock}"] = f"{median(r[name][clock] / r['boxmill'][clock] for r in runs):.2f}"
    row["least by it, cpu"] = f"{median(r[name]['cpu'] / r['least']['cpu'] for r in runs):.2f}"
    return row


def import_seconds(folder: Path, annotations: Path, work: Path, workers: int) -> float:
    """Wall seconds of the import stage with warm Ray workers."""
    with ray_session(address=None, num_cpus=workers, lean_workers=True):
        _timed_import(source_of(work / "few", None), work / "warm")
        return _timed_import(source_of(folder, str(annotations)), work / "out")


def _timed_import(source: Source, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    times: list[float] = []

    def tell(stage: str, done: int, total: int, **_: float) -> None:
        if stage == "import":
            times.append(time.perf_counter())

    version = ingest(source, str(out), progress=tell)
    assert version.num_images == sum(1 for _ in open_dataset(version.reference).index()["row"]), "an image is missing"
    shutil.rmtree(out)
    return times[-1] - times[0]


def speedup(folder: Path, annotations: Path, work: Path, rounds: int) -> tuple[float, list[dict[str, Any]]]:
    (work / "few").mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir())[:64]:
        shutil.copy(path, work / "few")
    rows = []
    for number in range(rounds):
        seconds = {n: import_seconds(folder, annotations, work, n) for n in ((1, 2) if number % 2 == 0 else (2, 1))}
        rows.append({"round": number, "1 worker s": f"{seconds[1]:.1f}", "2 workers s": f"{seconds[2]:.1f}"})
        rows[-1]["speedup"] = f"{seconds[1] / seconds[2]:.2f}"
    return median(float(row["speedup"]) for row in rows), rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=FEW)
    parser.add_argument("--many", type=int, default=MANY, help="images for the Ray workers, 0 leaves them out")
    parser.add_argument("--work", type=Path, default=Path("bench-out/ingest"))
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    parser.add_argument("--own", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.own:
        tool, folder, out, *given = arguments.own
        print(json.dumps(own_job(tool, Path(folder), Path(out), given[0] if given else None)))
        return 0
    mini = Path(os.environ.get("BOXMILL_DATA", "")).absolute() / "coco-mini"
    if not (mini / "annotations").is_dir():
        print("BOXMILL_DATA must name the folder that holds coco-mini/", file=sys.stderr)
        return 2
    load_before = load_average()
    work = arguments.work.absolute()
    few = copy_coco(mini, work / f"copies-{arguments.images}", arguments.images)
    rows = [row for job in JOBS for row in compare(job, few.parent / "images", str(few), work, arguments.rounds)]
    body = table(rows)
    ratios = {row["tool"]: float(row["boxmill by it, cpu"]) for row in rows if row["job"] == "digests"}
    shown = {**{name: ratios[name] for name in BARS}}
    bars: Mapping[str, float] = BARS
    if arguments.many:
        many = copy_coco(mini, work / f"copies-{arguments.many}", arguments.many)
        shown["two_workers"], found = speedup(many.parent / "images", many, work, rounds=min(3, arguments.rounds))
        body += "\n\n" + table(found)
        bars = {**BARS, "two_workers": LEAST_SPEEDUP}
    missed = [f"{name} {shown[name]:.2f} < {least}" for name, least in bars.items() if shown[name] < least]
    body += f"\n\nPeers: {peer_versions()}. Bars missed: {', '.join(missed) or 'none'}."
    print(body)
    if not arguments.no_record:
        append_result("ingest", body, load_before=load_before)
    print("ingest: " + " ".join(f"{name}={value:.2f}" for name, value in shown.items()), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
