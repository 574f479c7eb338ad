"""Faster R-CNN and masks beside torchvision, on the same weights, the same inputs and in the same process.

    make bench NAME=two-stage

Faster R-CNN R50-FPN from uint8 images in memory to detections in their pixels, batch 4 at 512x512, two threads, with
torchvision's random weights copied in by key map and the background's bias set so that some hundreds of candidates
pass in every image, of which 100 are reported; then the post-processing of its boxes alone, with logits that tell
regions apart as a trained detector's do. Masks: 100 an image, 28x28 crops of blobs in boxes with sides of 60 to 240 px,
150 in the mean, to run lengths (torchvision pastes, thresholds at 0.5 and encodes with pycocotools, as its reference
scripts do) and to dense probabilities.

All tools take turns, and what is quoted are medians over rounds of the ratios within a round. Before that, results are
compared: fp32 detections as many, and 98 of 100 in all images with a partner of the same label within 1e-4 of the
score and 0.1 px (parity proper is proven in tests/parity); masks bit by bit. The exit
status is 1 where a bar is missed.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detectors import create
from detectors.batching import make_batch
from detectors.blocks.box_heads import select_boxes
from detectors.blocks.rpn import select_proposals
from detectors.keymaps import load_named
from detectors.keymaps_rcnn import torchvision_rcnn
from detectors.models.faster_rcnn import FasterRcnn
from detectors.optimize import has_fast_bfloat16
from detectors.structures import Prediction
from tests.benchmarks.contests import (
    Contest,
    Found,
    Tool,
    arguments_of,
    hold,
    of_detector,
    of_torchvision,
    optimized,
    random_images,
    tame,
)
from tests.benchmarks.record import load_average
from tests.rcnn import wake_up

CLASSES = 90
CANDIDATES = 500  # an image
SPREAD = 3.0
"""About the standard deviation of how far the best class of a region is ahead of background (2.7 comes out: another
class may be the best then); 3.1 in ``mask_rcnn_lite0_fpn`` trained on the drawn scenes, 0.13 with random weights."""

MASKS, CELLS, SIDES = 100, 28, (60, 240)


@torch.no_grad()
def faster_rcnn(images: list[Tensor], *, compile: bool) -> tuple[Contest, Contest]:
    """End to end, and post-processing of boxes alone on the outputs of the first."""
    size = images[0].shape[-1]
    theirs = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=size, max_size=size
    )
    tame(theirs)
    wake_up(theirs)
    theirs.eval()
    ours = create("faster_rcnn_r50_fpn", num_classes=CLASSES, image_size=size, anchor_style="torchvision").eval()
    assert isinstance(ours, FasterRcnn)
    load_named(ours, torchvision_rcnn(theirs.state_dict()), "faster_rcnn_r50_fpn")

    batch = make_batch(images, ours.preprocessing)
    first = ours.dense(batch.images)
    anchors = ours.anchors(first.proposals, batch.images)
    proposals = select_proposals(first.proposals, anchors, batch.sizes, ours.proposals)
    logits, deltas = ours.box_outputs(ours.pooler.pool(first.maps, proposals))
    shift = background_shift(logits, CANDIDATES * len(images), ours.options.score_threshold)
    apart = told_apart(logits)
    apart[:, 0] += background_shift(apart, CANDIDATES * len(images), ours.options.score_threshold)
    for layer in (ours.box_head.class_logits, theirs.roi_heads.box_predictor.cls_score):
        layer.bias[0] += shift

    tools: dict[str, Tool] = {
        "torchvision": lambda: of_torchvision(theirs([image.float() / 255 for image in images]), first_label=1),
        "boxmill, plain": of_detector(ours, images),
        **optimized(ours, images, compile=compile),
    }
    bars = {"boxmill, fp32": 1.25}
    if has_fast_bfloat16(torch.device("cpu")):
        bars["boxmill, bf16"] = 2.0
    return (
        Contest(
            name="Faster R-CNN R50-FPN end to end",
            tools=tools,
            exact=frozenset({*tools} - {"torchvision", "boxmill, bf16"}),
            bars=bars,
        ),
        postprocessing(theirs, ours, apart, deltas, proposals, batch.sizes),
    )


def postprocessing(
    theirs: nn.Module, ours: FasterRcnn, logits: Tensor, deltas: Tensor, proposals: list[Tensor], sizes: Tensor
) -> Contest:
    regression = F.pad(deltas.transpose(1, 2), (0, 0, 1, 0)).flatten(1)  # theirs begins with the box of background
    shapes = [(h, w) for h, w in sizes.tolist()]

    def of_theirs() -> Found:
        boxes, scores, labels = theirs.roi_heads.postprocess_detections(logits, regression, proposals, shapes)
        return [(b, s, c - 1) for b, s, c in zip(boxes, scores, labels)]

    def of_ours() -> Found:
        found = select_boxes(logits, deltas, proposals, sizes, ours.selection, codec_weights=ours.options.box_weights)
        return [(f.boxes, f.scores, f.labels) for f in found]

    return Contest(
        name="its box post-processing alone",
        tools={"torchvision": of_theirs, "boxmill": of_ours},
        exact=frozenset({"boxmill"}),
        bars={"boxmill": 5.0},
    )


def told_apart(logits: Tensor) -> Tensor:
    """Logits that differ among regions as a trained detector's do: random weights say nearly the same of all."""
    lead = logits[:, 1:].amax(1) - logits[:, 0]
    mean = logits.mean(0)
    return mean + (logits - mean) * (SPREAD / lead.std())


def background_shift(logits: Tensor, wanted: int, threshold: float) -> float:
    """What background's logit needs for about so many scores above the threshold."""
    low, high = -30.0, 30.0
    for _ in range(30):
        middle = (low + high) / 2
        moved = logits.clone()
        moved[:, 0] += middle
        if int((moved.softmax(1)[:, 1:] > threshold).sum()) > wanted:
            low = middle
        else:
            high = middle
    return high


def masks(count: int, size: int) -> tuple[Contest, Contest]:
    """Run lengths, and dense probabilities, of the same crops of so many images."""
    predictions = [random_masks(size, seed) for seed in range(count)]

    def pasted() -> list[Tensor]:
        return [paste_masks_in_image(p.masks[:, None], p.boxes, p.size) for p in predictions]

    def encoded() -> list[list[dict[str, object]]]:
        return [
            [
                coco_mask.encode(np.array(m[0, :, :, np.newaxis], dtype=np.uint8, order="F"))[0]
                for m in (of_image > 0.5).numpy()
            ]
            for of_image in pasted()
        ]

    return (
        Contest(
            name="masks to run lengths",
            tools={"torchvision": encoded, "boxmill": lambda: [p.rle() for p in predictions]},
            exact=frozenset({"boxmill"}),
            bars={"boxmill": 12.0},
            differ=differing_runs,
        ),
        Contest(
            name="dense masks",
            tools={"torchvision": pasted, "boxmill": lambda: [p.dense() for p in predictions]},
            exact=frozenset({"boxmill"}),
            bars={"boxmill": 2.0},
            differ=differing_pixels,
        ),
    )


def random_masks(size: int, seed: int) -> Prediction:
    """Blobs in boxes whose mean side, at 512 px, is 150 px."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(MASKS, 1, 4, 4, generator=generator)
    crops = F.interpolate(coarse, size=(CELLS, CELLS), mode="bicubic")[:, 0].clamp(0, 1)
    least, most = (side * size / 512 for side in SIDES)
    sides = least + (most - least) * torch.rand(MASKS, 2, generator=generator)
    corners = torch.rand(MASKS, 2, generator=generator) * (size - sides)
    return Prediction(
        boxes=torch.cat([corners, corners + sides], 1),
        labels=torch.zeros(MASKS, dtype=torch.int64),
        scores=torch.ones(MASKS),
        masks=crops,
        size=(size, size),
    )


def differing_runs(found: list[list[np.ndarray]], expected: list[list[dict[str, object]]]) -> str | None:
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for place, (counts, rle) in enumerate(zip(ours, theirs, strict=True)):
            if coco_mask.frPyObjects({"size": rle["size"], "counts": counts.tolist()}, *rle["size"]) != rle:
                return f"mask {place} of image {number} has other runs"
    return None


def differing_pixels(found: list[Tensor], expected: list[Tensor]) -> str | None:
    same = all(torch.equal(ours, theirs[:, 0]) for ours, theirs in zip(found, expected, strict=True))
    return None if same else "dense masks differ"


def main() -> int:
    load_before = load_average()
    arguments = arguments_of(__doc__ or "", batch=4, size=512)
    images = random_images(arguments.batch, arguments.size)
    contests = (
        *faster_rcnn(images, compile=not arguments.no_compile),
        *masks(arguments.batch, arguments.size),
    )
    return hold("two-stage", contests, arguments, load_before=load_before)


if __name__ == "__main__":
    sys.exit(main())
