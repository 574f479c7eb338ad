"""One peer evaluates COCO's JSON documents.

    python evaluate.py pycocotools|faster-coco-eval|hotcoco|ultrafast-pycocotools bbox|segm INSTANCES RESULTS

Prints CPU and wall seconds from the files to the 12 numbers (imports not counted), the peak of memory, the numbers, and
a digest of the whole arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

MODULES = {
    "pycocotools": ("pycocotools.coco", "COCO", "pycocotools.cocoeval", "COCOeval"),
    "faster-coco-eval": ("faster_coco_eval", "COCO", "faster_coco_eval", "COCOeval_faster"),
    "hotcoco": ("hotcoco", "COCO", "hotcoco", "COCOeval"),
    "ultrafast-pycocotools": ("ultrafast_pycocotools", "COCO", "ultrafast_pycocotools", "COCOeval"),
}


def peak_mb() -> float:
    """Not getrusage's: that remembers the parent's from before exec."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def main() -> None:
    name, iou_type, instances, results = sys.argv[1:]
    module, coco, eval_module, evaluator = MODULES[name]
    COCO = getattr(importlib.import_module(module), coco)
    COCOeval = getattr(importlib.import_module(eval_module), evaluator)
    with contextlib.redirect_stdout(io.StringIO()):
        before, started = os.times(), time.perf_counter()
        truth = COCO(instances)
        evaluation = COCOeval(truth, truth.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats = [float(value) for value in evaluation.stats[:12]]
        wall, after = time.perf_counter() - started, os.times()
    arrays: Any = evaluation.eval
    content = b"".join(
        np.ascontiguousarray(arrays[key], np.float64).reshape(-1).tobytes() for key in ("precision", "recall", "scores")
    )
    print(
        json.dumps(
            {
                "cpu": sum(after[:4]) - sum(before[:4]),
                "wall": wall,
                "peak_mb": peak_mb(),
                "stats": stats,
                "digest": hashlib.sha256(content).hexdigest(),
            }
        )
    )


if __name__ == "__main__":
    main()
