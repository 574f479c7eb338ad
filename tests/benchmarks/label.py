"""Bulk labelling beside a bare loop and beside Ray Data's own way, and its memory.

    make bench NAME=label

Images a CPU second of retinanet_lite0 at 320 over photographs of COCO's mean size, on as many processes of one thread
as there are cores: boxmill; a bare loop (decode, resize, the same optimised model, boxes to a list; batches of images
of one size, as boxmill's); Ray Data's read_parquet, map_batches, write_parquet with torchvision's post-processing
(tests/benchmarks/peers/label.py), batch size tuned here first, with the model as it is loaded (the bar is against this)
and with the one that boxmill has optimised. CPU seconds are those of all processes of a tool, and
each is measured on few images and on many: the difference is what images cost once everything has started. Then the
highest sum of PSS over all processes at 500 and at 5,000 images. Outputs are compared. The exit status is 1 where a bar
is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks.copies import copy_coco
from tests.benchmarks.labelled import SCORE_THRESHOLD, agreement, linked, of_bare, of_boxmill, of_ray_data, save_model
from tests.benchmarks.peer_venv import run_measured
from tests.benchmarks.processes import TreeCpu, TreePss
from tests.benchmarks.record import append_result, load_average, table

LEAST_OF_BARE, LEAST_OF_RAY_DATA, MOST_MEMORY = 0.90, 1.3, 1.10
RAY_DATA, RAY_DATA_OPTIMISED = "Ray Data", "Ray Data, optimised model"
LEAST_AGREEMENT = {"bare loop": 0.999, RAY_DATA_OPTIMISED: 0.97}
PEER_BATCHES = (1, 4, 16)
BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where everything lies, and how many processes label.

    Attributes:
        work: scratch folder.
        images: folder of all images.
        model: directory.
        workers: processes.
    """

    work: Path
    images: Path
    model: str
    workers: int

    def folder(self, count: int) -> Path:
        return linked(self.images, self.work / f"first-{count}", count)

    def boxmill(self, count: int) -> dict[str, Any]:
        out = _fresh(self.work / "boxmill")
        return _own("boxmill", self.model, str(self.folder(count)), str(out), str(self.workers))

    def bare(self, count: int) -> dict[str, Any]:
        """One process a core, each with every so-manieth image."""
        out = _fresh(self.work / "bare")
        out.mkdir(parents=True)
        command = [*_OWN, "bare", self.model, str(self.folder(count)), str(out), str(self.workers)]
        started = time.perf_counter()
        parts = [subprocess.Popen([*command, str(part)], stdout=subprocess.PIPE) for part in range(self.workers)]
        found = [json.loads(part.communicate()[0].splitlines()[-1]) for part in parts]
        cpu = sum(part["cpu"] for part in found)
        return {"cpu": cpu, "wall": time.perf_counter() - started, "images": sum(part["images"] for part in found)}

    def ray_data(self, count: int, batch: int, how: str = "plain") -> dict[str, Any]:
        script = [sys.executable, "-m", "tests.benchmarks.peers.label"]
        parquet = self.work / f"parquet-{sum(1 for _ in self.images.iterdir())}"
        if not parquet.exists():
            subprocess.run([*script, "prepare", str(self.images), str(parquet)], check=True)
        out = _fresh(self.work / "ray-data")
        return run_measured(
            [*script, "run", self.model, str(parquet), str(out), str(batch), str(self.workers), str(count), how]
        )


_OWN = [sys.executable, "-m", "tests.benchmarks.label", "--own"]


def _own(*arguments: str) -> dict[str, Any]:
    return run_measured([*_OWN, *arguments])


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def own_boxmill(model: str, folder: str, out: str, workers: str) -> dict[str, Any]:
    from workers.label import LabelConfig, label

    started = time.perf_counter()
    config = LabelConfig(
        input=folder,
        model=model,
        out=out,
        workers=int(workers),
        score_threshold=SCORE_THRESHOLD,
        batch_size=BATCH,
        ray_address="local",
    )
    with TreeCpu() as used:
        made = label(config)
    wall = time.perf_counter() - started
    return {"cpu": used.seconds, "wall": wall, "images": made.num_images, "reference": made.reference}


def own_bare(model: str, folder: str, out: str, workers: str, part: str) -> dict[str, Any]:
    """The least there is to do: no receipts, no digests, no rows, everything in a list."""
    import detectors
    from detectors.batching import fit_size, make_batch, resize_image
    from detectors.optimize import optimize
    from workers.batches import decode_image
    from workers.memory import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    detector = optimize(detectors.load(Path(model)).detector)
    preprocessing = detector.preprocessing
    results: list[Any] = []
    waiting: dict[tuple[int, ...], list[Any]] = {}

    def predict(images: list[Any]) -> None:
        batch = make_batch([resized for _, resized, _ in images], preprocessing)
        with torch.inference_mode():
            predictions = detector.predict(batch)
        for (name, resized, size), p in zip(images, predictions, strict=True):
            scale = torch.tensor([size[1] / resized.shape[2], size[0] / resized.shape[1]]).repeat(2)
            results.append((name, (p.boxes * scale).tolist(), p.labels.tolist(), p.scores.tolist()))

    for path in sorted(Path(folder).iterdir())[int(part) :: int(workers)]:
        pixels = decode_image(path.read_bytes())
        size = (pixels.shape[1], pixels.shape[2])
        resized = resize_image(pixels, fit_size(*size, preprocessing))
        padded = tuple(-(-side // preprocessing.divisor) for side in resized.shape[1:])
        waiting.setdefault(padded, []).append((path.name, resized, size))
        if len(waiting[padded]) == BATCH:
            predict(waiting.pop(padded))
    for images in waiting.values():
        predict(images)
    used = os.times()
    (Path(out) / f"{part}.json").write_text(json.dumps(results))
    return {"cpu": used.user + used.system, "images": len(results)}


def rate(few: dict[str, Any], many: dict[str, Any], of: str) -> float:
    """Images a second of CPU or wall time, once everything has started."""
    return (many["images"] - few["images"]) / (many[of] - few[of])


def compare(bench: Bench, few: int, many: int, rounds: int, batch: int) -> list[dict[str, dict[str, float]]]:
    """One mapping of tool to its rates a round."""
    found = []
    for at in range(rounds):
        runs = {
            "boxmill": (bench.boxmill(few), bench.boxmill(many)),
            "bare loop": (bench.bare(few), bench.bare(many)),
            RAY_DATA: (bench.ray_data(few, batch), bench.ray_data(many, batch)),
            RAY_DATA_OPTIMISED: tuple(bench.ray_data(count, batch, "optimised") for count in (few, many)),
        }
        found.append(
            {tool: {of: rate(*pair, of) for of in ("cpu", "wall")} for tool, pair in runs.items()}
            | {"start": {"cpu": runs["boxmill"][0]["cpu"], "wall": runs["boxmill"][0]["wall"]}}
        )
        print(f"round {at}: {json.dumps(found[-1])}", file=sys.stderr, flush=True)
    return found


def tune(bench: Bench, few: int, more: int) -> tuple[int, dict[int, float]]:
    """The batch size with which Ray Data's way is fastest; one process a core is what all have."""
    rates = {batch: rate(bench.ray_data(few, batch), bench.ray_data(more, batch), "cpu") for batch in PEER_BATCHES}
    return max(rates, key=lambda batch: rates[batch]), rates


def agreements(bench: Bench, reference: str) -> dict[str, float]:
    ours = of_boxmill(reference)
    assert sum(len(scores) for _, _, scores in ours.values()) > len(ours), "the model finds hardly anything"
    theirs = {"bare loop": of_bare(sorted((bench.work / "bare").iterdir()))}
    theirs[RAY_DATA_OPTIMISED] = of_ray_data(bench.work / "ray-data")
    return {tool: agreement(ours, found) for tool, found in theirs.items()}


def peak_memory(bench: Bench, count: int) -> float:
    """MiB of all processes together."""
    out = _fresh(bench.work / "memory")
    command = [*_OWN, "boxmill", bench.model, str(bench.folder(count)), str(out), str(bench.workers)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, TreePss(process.pid) as used:
        process.wait()
    if process.returncode:
        raise SystemExit(f"labelling {count} images ended with {process.returncode}")
    return used.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_304, help="many; few are a ninth of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs=2, default=(500, 5_000), help="images; 0 0 to leave it out")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path("bench-out/label"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BOXMILL_DATA", "data")))
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    before = load_average()
    few, most = max(1, args.images // 9), max(args.images, *args.memory)
    copy_coco(args.data / "coco-mini", args.work, most)
    images = args.work / "images"
    model = save_model(_fresh(args.work / "model"), sorted(images.iterdir())[:16])
    bench = Bench(work=args.work, images=images, model=model, workers=args.workers)

    batch, tuned = tune(bench, max(1, few // 2), 2 * few)
    rounds = compare(bench, few, args.images, args.rounds, batch)
    reference = bench.boxmill(args.images)["reference"]
    agreed = agreements(bench, reference)
    ratios = {
        tool: median(found["boxmill"]["cpu"] / found[tool]["cpu"] for found in rounds)
        for tool in ("bare loop", RAY_DATA, RAY_DATA_OPTIMISED)
    }
    memory = [peak_memory(bench, count) for count in args.memory if count]
    growth = memory[1] / memory[0] if memory else 0.0

    rows = [
        {
            "tool": tool,
            "images/CPU s": f"{median(found[tool]['cpu'] for found in rounds):.1f}",
            "images/s": f"{median(found[tool]['wall'] for found in rounds):.1f}",
            "boxmill by it, cpu": f"{ratios.get(tool, 1.0):.2f}",
            "detections agree": f"{agreed[tool]:.4f}" if tool in agreed else "",
        }
        for tool in ("boxmill", *ratios)
    ]
    missed = [f"{tool} agrees {agreed[tool]:.4f}" for tool in agreed if agreed[tool] < LEAST_AGREEMENT[tool]]
    missed += [f"bare {ratios['bare loop']:.2f}"] * (ratios["bare loop"] < LEAST_OF_BARE)
    missed += [f"ray_data {ratios[RAY_DATA]:.2f}"] * (ratios[RAY_DATA] < LEAST_OF_RAY_DATA)
    missed += [f"memory {growth:.2f}"] * (growth > MOST_MEMORY)
    sizes = ", ".join(f"{size}: {value:.1f}" for size, value in tuned.items())
    body = (
        f"{table(rows)}\n\nMedians of {args.rounds} round(s), {few} and {args.images} images, {args.workers} workers. "
        f"Images/CPU s of Ray Data by batch size: {sizes}; {batch} was taken. Highest sum of PSS, MiB: "
        + (", ".join(f"{mib:.0f} at {count} images" for mib, count in zip(memory, args.memory)) or "not measured")
        + f". Bars missed: {', '.join(missed) or 'none'}."
    )
    if not args.no_record:
        append_result("label", body, load_before=before)
    print(body)
    print(
        f"label: bare={ratios['bare loop']:.3f} ray_data={ratios[RAY_DATA]:.3f} "
        f"ray_data_optimised={ratios[RAY_DATA_OPTIMISED]:.3f} memory={growth:.3f}"
    )
    sys.exit(bool(missed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--own"]:
        tool, *given = sys.argv[2:]
        print(json.dumps(own_boxmill(*given) if tool == "boxmill" else own_bare(*given)))
    else:
        main()
