"""Labelling as Ray Data's documentation has it: read_parquet, map_batches with a pool of actors, write_parquet.

    python -m tests.benchmarks.peers.label prepare FOLDER WORK
    python -m tests.benchmarks.peers.label run MODEL WORK OUT BATCH WORKERS LIMIT plain|optimised

The network is the same, as it is loaded or as boxmill optimises it, and so are decoder and resizing; what follows the
network is torchvision's post-processing of RetinaNet (its functions, its loops over images and levels). Images of a
batch go through the network by size: padded to the largest they would cost more and, as the head's norms see the
padding, be others. The last line is JSON: CPU seconds of all processes, wall seconds, images.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import boxes as box_ops

ROWS = 64
"""Of a row group and of a file, so that a small run reads no more than it needs."""
TOPK, NMS_IOU, MAX_DETECTIONS, SCORE = 1000, 0.5, 100, 0.05


RESULTS = pa.schema(
    [
        ("name", pa.string()),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int64())),
    ]
)


def prepare(folder: str, work: str) -> None:
    """Images as they are, with their names, in Parquet files of ``ROWS`` rows."""
    paths = sorted(Path(folder).iterdir())
    Path(work).mkdir(parents=True)
    for first in range(0, len(paths), ROWS):
        part = paths[first : first + ROWS]
        rows = pa.table({"name": [p.name for p in part], "image": [p.read_bytes() for p in part]})
        pq.write_table(rows, f"{work}/{first:06d}.parquet", compression="none")


class Labeller:
    """One batch of encoded images a call."""

    def __init__(self, model: str, threads: int, optimised: bool) -> None:
        import detectors
        from detectors.optimize import optimize
        from workers.exits import exit_within
        from workers.memory import keep_freed_memory

        torch.set_num_threads(threads)
        keep_freed_memory()
        exit_within()
        detector = detectors.load(Path(model)).detector.eval()
        self._detector: Any = optimize(detector) if optimised else detector
        self._coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        from detectors.batching import fit_size, make_batch, resize_image
        from workers.batches import decode_image

        preprocessing = self._detector.preprocessing
        decoded = [decode_image(image) for image in batch["image"]]
        resized = [resize_image(p, fit_size(p.shape[1], p.shape[2], preprocessing)) for p in decoded]
        of_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(resized):
            of_size.setdefault(tuple(-(-side // preprocessing.divisor) for side in image.shape[1:]), []).append(i)
        found: list[Any] = [None] * len(decoded)
        for places in of_size.values():
            inputs = make_batch([resized[i] for i in places], preprocessing)
            with torch.inference_mode():
                outputs = self._detector.dense(inputs.images)
                anchors = self._detector.anchors(outputs, inputs.images).split([x.shape[1] for x in outputs.logits])
                for at, (i, size) in enumerate(zip(places, inputs.sizes.tolist(), strict=True)):
                    found[i] = self._select(
                        [logits[at] for logits in outputs.logits],
                        [deltas[at] for deltas in outputs.deltas],
                        anchors,
                        (size[0], size[1]),
                        (decoded[i].shape[1], decoded[i].shape[2]),
                    )
        return pa.table(
            {
                "name": pa.array(list(batch["name"]), pa.string()),
                "boxes": [boxes.tolist() for boxes, _, _ in found],
                "scores": [scores.tolist() for _, scores, _ in found],
                "labels": [labels.tolist() for _, _, labels in found],
            },
            schema=RESULTS,
        )

    def _select(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        anchors: tuple[Tensor, ...],
        size: tuple[int, int],
        original: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """torchvision.models.detection.RetinaNet.postprocess_detections of one image, and its resizing of boxes."""
        boxes, scores, labels = [], [], []
        for of_level, deltas_of_level, anchors_of_level in zip(logits, deltas, anchors):
            num_classes = of_level.shape[-1]
            probabilities = torch.sigmoid(of_level).flatten()
            keep = probabilities > SCORE
            probabilities = probabilities[keep]
            places = torch.where(keep)[0]
            probabilities, order = probabilities.topk(min(TOPK, len(places)))
            places = places[order]
            at = torch.div(places, num_classes, rounding_mode="floor")
            decoded = self._coder.decode_single(deltas_of_level[at], anchors_of_level[at])
            boxes.append(box_ops.clip_boxes_to_image(decoded, size))
            scores.append(probabilities)
            labels.append(places % num_classes)
        all_boxes, all_scores, all_labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        keep = box_ops.batched_nms(all_boxes, all_scores, all_labels, NMS_IOU)[:MAX_DETECTIONS]
        scale = torch.tensor([original[1] / size[1], original[0] / size[0]]).repeat(2)
        return all_boxes[keep] * scale, all_scores[keep], all_labels[keep]


def run(model: str, work: str, out: str, batch: int, workers: int, limit: int, optimised: bool) -> dict[str, Any]:
    import ray
    import ray.data

    from tests.benchmarks.processes import TreeCpu
    from workers.cluster import ray_session

    files = sorted(map(str, Path(work).glob("*.parquet")))[: -(-limit // ROWS)]
    started = time.perf_counter()
    # Logical CPUs beside the actors': reading and writing are tasks of one CPU each, and wait for one otherwise.
    with TreeCpu() as used, ray_session("local", num_cpus=workers + 2, lean_workers=True):
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.read_parquet(files).limit(limit).map_batches(
            Labeller,
            fn_constructor_args=(model, 1, optimised),
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        ).write_parquet(out)
    return {"cpu": used.seconds, "wall": time.perf_counter() - started, "images": limit}


def main() -> None:
    match sys.argv[1:]:
        case ["prepare", folder, work]:
            prepare(folder, work)
        case ["run", model, work, out, batch, workers, limit, ("plain" | "optimised") as how]:
            print(json.dumps(run(model, work, out, int(batch), int(workers), int(limit), how == "optimised")))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
