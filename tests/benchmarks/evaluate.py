"""COCO's 12 numbers beside pycocotools, faster-coco-eval, hotcoco and ultrafast-pycocotools.

    make bench NAME=evaluate

A made-up set of COCO's validation size: 5,000 images, 80 classes, about 37,000 truths, 500,000 detections whose scores
are tied. boxmill goes from Parquet at rest to the numbers, the others from COCO's JSON documents; each is a process of
its own, imports are not counted, and the whole precision, recall and score arrays must equal pycocotools's. Then ten
times the set, its shards counted by one process and by two, of one thread each. The exit status is 1 where a bar is
missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.metrics.coco import CocoMetrics, evaluate_columns, metrics_of
from pipelines.metrics.incremental import EvaluationUnit, UnitCounts, count_unit, evaluation_units, merge_units
from pipelines.metrics.reading import read_columns
from pipelines.metrics.settings import coco_settings
from pipelines.predictions import open_predictions
from pipelines.versions import open_dataset
from tests.benchmarks.detected import Detected, make_detected
from tests.benchmarks.peer_venv import run_measured, run_peer
from tests.benchmarks.record import append_result, load_average, table

EVALUATORS = ("pycocotools", "faster-coco-eval", "hotcoco", "ultrafast-pycocotools")
IMAGES, TIMES = 5_000, 10
LEAST_OF_PYCOCOTOOLS, MOST_OF_FASTEST, MOST_OF_HOTCOCO_MASKS = 35.0, 1.1, 1.3
MOST_WALL_S, MOST_MEMORY, LEAST_OF_TWO = 2.0, 1.5, 1.6
Run = dict[str, Any]


def own_evaluation(iou_type: Any, dataset_ref: str, predictions_ref: str) -> Run:
    """As ``peers/evaluate.py`` measures the others."""
    pa.array(np.zeros(1))  # with the first array pyarrow imports pandas, and imports are not counted
    before, started = os.times(), time.perf_counter()
    dataset, predictions = open_dataset(dataset_ref), open_predictions(predictions_ref)
    truth, found = read_columns(dataset, predictions, iou_type=iou_type)
    metrics = evaluate_columns(truth, found, dataset.label_map, coco_settings(iou_type))
    stats = list(metrics.stats.values())
    wall, after = time.perf_counter() - started, os.times()
    return {
        "cpu": sum(after[:4]) - sum(before[:4]),
        "wall": wall,
        "peak_mb": peak_mb(),
        "stats": stats,
        "digest": digest_of(metrics),
    }


def peak_mb() -> float:
    """Not getrusage's: that remembers the parent's from before exec."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def digest_of(metrics: CocoMetrics) -> str:
    arrays = (metrics.precision, metrics.recall, metrics.scores)
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).reshape(-1).tobytes() for a in arrays)).hexdigest()


def compare(made: Detected, iou_type: str, rounds: int) -> list[dict[str, Run]]:
    """One mapping of tool to measurement a round, in turns; pycocotools, which takes minutes, in the first only."""
    own = [sys.executable, "-m", "tests.benchmarks.evaluate", "--own", iou_type, made.dataset, made.predictions]
    files = str(made.truth_json), str(made.results_json)
    tools: dict[str, Callable[[], Run]] = {"boxmill": partial(run_measured, own)}
    tools |= {name: partial(run_peer, "evaluate", name, iou_type, *files) for name in EVALUATORS}
    runs: list[dict[str, Run]] = []
    for number in range(rounds):
        names = [name for name in tools if number == 0 or name != "pycocotools"]
        turn = number % len(names)
        found = {name: tools[name]() for name in names[turn:] + names[:turn]}
        if runs:
            found["pycocotools"] = runs[0]["pycocotools"]
        reference = found["pycocotools"]
        assert found["boxmill"]["digest"] == reference["digest"], f"{iou_type}: the arrays differ from pycocotools's"
        for name, run in found.items():
            assert np.allclose(run["stats"], reference["stats"], rtol=0, atol=1e-3), f"{name}'s numbers differ"
        runs.append(found)
    return runs


def rows_of(runs: list[dict[str, Run]]) -> list[dict[str, Any]]:
    return [
        {
            "tool": name,
            **{f"{key}": f"{median(run[name][key] for run in runs):.2f}" for key in ("cpu", "wall")},
            "peak MB": f"{median(run[name]['peak_mb'] for run in runs):.0f}",
            "CPU by boxmill's": f"{median(run[name]['cpu'] / run['boxmill']['cpu'] for run in runs):.2f}",
            "arrays are pycocotools's": all(run[name]["digest"] == run["pycocotools"]["digest"] for run in runs),
        }
        for name in ("boxmill", *EVALUATORS)
    ]


def count_one(references: tuple[str, str], unit: EvaluationUnit) -> UnitCounts:
    """In a worker."""
    dataset, predictions = open_dataset(references[0]), open_predictions(references[1])
    return count_unit(unit, dataset, predictions, None, coco_settings("bbox"))


def scaling(made: Detected, rounds: int) -> tuple[float, float, float]:
    """Wall seconds by one process over those by two, and both; started and warm processes."""
    references = made.dataset, made.predictions
    dataset, predictions = open_dataset(references[0]), open_predictions(references[1])
    units = evaluation_units(dataset, predictions)
    walls: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    for workers in [1, 2] * rounds:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(partial(count_one, references), units[:workers]))
            started = time.perf_counter()
            parts = list(pool.map(partial(count_one, references), units))
            metrics = metrics_of(merge_units(parts), dataset.label_map, coco_settings("bbox"), threads=workers)
            walls[workers].append(time.perf_counter() - started)
            digests.add(digest_of(metrics))
    assert len(digests) == 1, "the number of workers changed the numbers"
    ratio = median(one / two for one, two in zip(walls[1], walls[2], strict=True))
    return ratio, median(walls[1]), median(walls[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--times", type=int, default=TIMES, help="how many times the set two workers share")
    parser.add_argument("--work", type=Path, default=Path("bench-out/evaluate"))
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    parser.add_argument("--own", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.own:
        print(json.dumps(own_evaluation(*arguments.own)))
        return 0
    load_before = load_average()
    work = arguments.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    found: dict[str, float] = {}
    body = ""
    for iou_type in ("bbox", "segm"):
        made = make_detected(work / iou_type, arguments.images, masks=iou_type == "segm")
        runs = compare(made, iou_type, arguments.rounds)
        body += (
            f"\n{iou_type}: {arguments.images} images, {made.num_truths} truths, {made.num_detections} detections\n\n"
        )
        body += table(rows_of(runs)) + "\n"

        def ratio(of: Callable[[dict[str, Run]], float], runs: list[dict[str, Run]] = runs) -> float:
            return median(of(run) for run in runs)

        if iou_type == "bbox":
            found["pycocotools_cpu"] = ratio(lambda r: r["pycocotools"]["cpu"] / r["boxmill"]["cpu"])
            found["fastest_cpu"] = ratio(lambda r: r["boxmill"]["cpu"] / min(r[n]["cpu"] for n in EVALUATORS))
            found["wall_s"] = ratio(lambda r: r["boxmill"]["wall"])
            found["memory"] = ratio(lambda r: r["boxmill"]["peak_mb"] / r["hotcoco"]["peak_mb"])
        else:
            found["masks_hotcoco_cpu"] = ratio(lambda r: r["boxmill"]["cpu"] / r["hotcoco"]["cpu"])
        shutil.rmtree(work / iou_type)
    many = make_detected(work / "many", arguments.images * arguments.times, masks=False, documents=False)
    found["two_workers"], one, two = scaling(many, arguments.rounds)
    body += f"\n{many.num_detections} detections by one process: {one:.2f} s, by two: {two:.2f} s."
    bars = {
        "pycocotools_cpu": (1, LEAST_OF_PYCOCOTOOLS),
        "fastest_cpu": (-1, MOST_OF_FASTEST),
        "masks_hotcoco_cpu": (-1, MOST_OF_HOTCOCO_MASKS),
        "wall_s": (-1, MOST_WALL_S),
        "memory": (-1, MOST_MEMORY),
        "two_workers": (1, LEAST_OF_TWO),
    }
    missed = [
        f"{name} {found[name]:.2f} ({bar})" for name, (sign, bar) in bars.items() if sign * (found[name] - bar) < 0
    ]
    body += f"\n\nBars missed: {', '.join(missed) or 'none'}."
    print(body)
    if not arguments.no_record:
        append_result("evaluate", body, load_before=load_before)
    shutil.rmtree(work, ignore_errors=True)
    print("evaluate: " + " ".join(f"{name}={found[name]:.2f}" for name in bars), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
