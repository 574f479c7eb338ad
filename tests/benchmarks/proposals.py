"""How many objects the proposals of selective search hold, beside those of a sliding window: coco-mini's train split.

    make bench NAME=proposals

Recall: the share of objects (crowds left out) that some proposal has an IoU of at least 0.5 with, of the first 100,
500 and 2,000 of an image; of all objects and of COCO's three sizes. Seconds are of one thread, and of the processor, so
that other work beside them counts little. No bar, but for what the comparison is there to show: the exit status is 1
where selective search holds fewer than the sliding window.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from detectors.base import Preprocessing
from detectors.batching import make_batch
from detectors.blocks.proposals import ProposalOptions, Proposer
from tests.benchmarks.record import append_result, load_average, table

COUNTS = (100, 500, 2000)
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}
QUALITY = {
    "search_colours": ("hsv", "lab", "rgi", "hue", "grey"),
    "search_scales": (50.0, 100.0, 150.0, 300.0),
    "search_similarities": ("ctsf", "tsf", "f", "s"),
}
METHODS = {
    "selective_search": ProposalOptions(proposal_cache=0),
    "sliding_window": ProposalOptions(proposal_method="sliding_window"),
    "selective_search, fast_rcnn_lite0": ProposalOptions(
        proposal_cache=0, search_size=320, search_colours=("lab",), search_scales=(50.0,)
    ),
    "selective_search, quality": ProposalOptions(proposal_cache=0, **QUALITY),
}
DEFAULT = list(METHODS)[:3]


@dataclass(slots=True, kw_only=True)
class Sums:
    """Of all images.

    Attributes:
        best: for each count, the best IoU of every object.
        areas: of the objects, COCO's.
        proposals, seconds: of each image.
    """

    best: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    areas: list[float] = field(default_factory=list)
    proposals: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def row(self, method: str) -> dict[str, object]:
        areas = np.array(self.areas)
        found = {count: np.array(best) >= 0.5 for count, best in self.best.items()}
        of_size = {
            name: float(found[COUNTS[-1]][(areas >= low) & (areas < high)].mean())
            for name, (low, high) in SIZES.items()
        }
        return {
            "proposals": method,
            "an image": round(float(np.mean(self.proposals))),
            **{f"recall of {count:,}": f"{found[count].mean():.3f}" for count in COUNTS},
            **{name: f"{recall:.3f}" for name, recall in of_size.items()},
            "mean best IoU": f"{np.mean(self.best[COUNTS[-1]]):.3f}",
            "s/image": f"{np.mean(self.seconds):.2f}",
        }

    @property
    def recall(self) -> float:
        return float((np.array(self.best[COUNTS[-1]]) >= 0.5).mean())


def coco_train(mini: Path, limit: int | None) -> Iterator[tuple[Tensor, Tensor, list[float]]]:
    """(3, H, W) uint8 images, (N, 4) xyxy boxes and areas of their objects."""
    document = json.loads((mini / "annotations" / "instances_train2017.json").read_text())
    objects = defaultdict(list)
    for annotation in document["annotations"]:
        if not annotation["iscrowd"] and min(annotation["bbox"][2:]) > 0:
            objects[annotation["image_id"]].append(annotation)
    for image in document["images"][:limit]:
        with Image.open(mini / "train2017" / image["file_name"]) as file:
            pixels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
        boxes = torch.tensor([a["bbox"] for a in objects[image["id"]]]).view(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        yield pixels, boxes, [a["area"] for a in objects[image["id"]]]


def measure(options: ProposalOptions, mini: Path, limit: int | None) -> Sums:
    sums = Sums()
    # COCO's images as they are: their longer side is 640.
    preprocessing = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=640, divisor=32)
    proposer = Proposer(options, preprocessing)
    for pixels, boxes, areas in coco_train(mini, limit):
        batch = make_batch([pixels], preprocessing)
        started = time.process_time()
        (proposals,) = proposer.propose(batch)
        sums.seconds.append(time.process_time() - started)
        sums.proposals.append(len(proposals))
        scale = batch.sizes[0].flip(0).repeat(2) / batch.original_sizes[0].flip(0).repeat(2)
        iou = box_iou(proposals, boxes * scale)
        for count in COUNTS:
            sums.best[count] += iou[:count].amax(0).tolist() if len(iou) else [0.0] * len(boxes)
        sums.areas += areas
    return sums


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=METHODS, help=f"default: {', '.join(DEFAULT)}")
    parser.add_argument("--images", type=int, help="fewer, to try the bench itself; not recorded")
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    arguments = parser.parse_args()
    mini = Path(os.environ.get("BOXMILL_DATA", "")).absolute() / "coco-mini"
    if not mini.is_dir():
        print("BOXMILL_DATA must name the folder that holds coco-mini/", file=sys.stderr)
        return 2
    load_before = load_average()
    torch.set_num_threads(1)
    measured = {}
    for name in arguments.only or DEFAULT:
        measured[name] = measure(METHODS[name], mini, arguments.images)
        print(measured[name].row(name), flush=True)
    body = table([sums.row(name) for name, sums in measured.items()])
    objects = len(next(iter(measured.values())).areas)
    if not arguments.no_record and arguments.images is None:
        told = f"{objects} objects of coco-mini's train split; seconds are of the processor, one thread."
        append_result("proposals", f"{body}\n\n{told}", load_before=load_before)
    recalls = {name: sums.recall for name, sums in measured.items()}
    print("proposals: " + " ".join(f"{name.replace(', ', '/')}={recall:.3f}" for name, recall in recalls.items()))
    return 0 if recalls.get("selective_search", 1.0) > recalls.get("sliding_window", 0.0) else 1


if __name__ == "__main__":
    sys.exit(main())
