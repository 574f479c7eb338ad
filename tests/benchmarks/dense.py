"""Dense detectors beside torchvision and effdet, on the same weights, the same images and in the same process.

    make bench NAME=dense

From uint8 images in memory to detections in their pixels, batch 8 at 512x512, two threads. The oracle's random weights
are copied in by key map, with the classifier's bias raised until some hundreds of candidates pass in every image. All
tools take turns, and what is quoted are medians over rounds of the ratios within a round. Before that, fp32 detections
are compared: as many, and 98 of 100 in all images with a partner of the same label within 1e-4 of the score and 0.1 px
(random weights are worse than trained ones; parity proper is proven in tests/parity). Lines with a bar: RetinaNet-R50
optimized in fp32, compiled, in bf16 where the processor has it, its post-processing alone, and EfficientDet-D0 beside
effdet's predict; SSD300 at 300x300 is told besides. The exit status is 1 where a bar is missed.
"""

from __future__ import annotations

import sys

import torch
from effdet import DetBenchPredict, get_efficientdet_config
from effdet import EfficientDet as TheirEfficientDet
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn, ssd300_vgg16

from detectors import create
from detectors.batching import make_batch
from detectors.blocks.postprocess import select_detections
from detectors.keymaps import load_named, torchvision_retinanet
from detectors.keymaps_effdet import effdet_efficientdet
from detectors.keymaps_ssd import torchvision_ssd
from detectors.models.retinanet import RetinaNet
from detectors.models.ssd import SSD
from detectors.optimize import has_fast_bfloat16
from tests.benchmarks.contests import (
    Contest,
    Found,
    Tool,
    arguments_of,
    hold,
    of_detector,
    of_predictions,
    of_torchvision,
    optimized,
    random_images,
    tame,
)
from tests.benchmarks.record import load_average

CLASSES = 91
CANDIDATES = 500  # an image


@torch.no_grad()
def retinanet(images: list[Tensor], *, compile: bool) -> tuple[Contest, Contest]:
    """End to end, and post-processing alone on the outputs of the first."""
    size = images[0].shape[-1]
    theirs = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=size, max_size=size
    )
    tame(theirs)
    liven_head(theirs)
    theirs.eval()
    floats = [image.float() / 255 for image in images]
    padded = theirs.transform(floats)[0].tensors
    logits = theirs.head(list(theirs.backbone(padded).values()))["cls_logits"]
    raise_bias(theirs.head.classification_head.cls_logits.bias, logits, len(images), threshold=0.05)
    ours = create(
        "retinanet_r50_fpn", num_classes=CLASSES, image_size=size, p6_source="p5", anchor_style="torchvision"
    ).eval()
    assert isinstance(ours, RetinaNet)
    load_named(ours, torchvision_retinanet(theirs.state_dict(), num_anchors=9), "retinanet_r50_fpn")

    tools: dict[str, Tool] = {
        "torchvision": lambda: of_torchvision(theirs([image.float() / 255 for image in images])),
        "boxmill, plain": of_detector(ours, images),
        **optimized(ours, images, compile=compile),
    }
    bars = {"boxmill, fp32": 1.3, "boxmill, compiled": 1.5}
    if has_fast_bfloat16(torch.device("cpu")):
        bars["boxmill, bf16"] = 2.3

    batch = make_batch(images, ours.preprocessing)
    outputs = ours.dense(batch.images)
    anchors = ours.anchors(outputs, batch.images)
    levels = [x.shape[1] for x in outputs.logits]
    joined = {"cls_logits": outputs.logits, "bbox_regression": outputs.deltas}
    split, sizes = [list(anchors.split(levels))] * len(images), [(size, size)] * len(images)
    alone: dict[str, Tool] = {
        "torchvision": lambda: of_torchvision(theirs.postprocess_detections(joined, split, sizes)),
        "boxmill": lambda: of_predictions(select_detections(outputs, anchors, batch, ours.selection)),
    }
    exact = frozenset({*tools} - {"torchvision", "boxmill, bf16"})
    return (
        Contest(name="RetinaNet-R50 end to end", tools=tools, exact=exact, bars=bars),
        Contest(name="its post-processing alone", tools=alone, exact=frozenset({"boxmill"}), bars={"boxmill": 3.0}),
    )


@torch.no_grad()
def efficientdet(images: list[Tensor], *, compile: bool) -> Contest:
    size = images[0].shape[-1]
    config = get_efficientdet_config("tf_efficientdet_d0")
    config.image_size, config.num_classes = (size, size), CLASSES
    model = TheirEfficientDet(config, pretrained_backbone=False).eval()
    tame(model)
    pixels = torch.stack([(image.float() - 127) / 60 for image in images])
    for net, outputs, spread in zip((model.class_net, model.box_net), model(pixels), (1.0, 0.3)):
        net.predict.conv_pw.weight *= spread / torch.cat([x.flatten() for x in outputs]).std()
    # effdet reports the best 100, however unsure, so that nothing needs to be raised.
    ours = create("efficientdet_d0", num_classes=CLASSES, image_size=size, score_threshold=0.0).eval()
    load_named(ours, effdet_efficientdet(model.state_dict(), num_anchors=9), "efficientdet_d0")
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (ours.preprocessing.mean, ours.preprocessing.std))
    theirs = DetBenchPredict(model).eval()
    info = {"img_scale": torch.ones(len(images)), "img_size": torch.full((len(images), 2), float(size))}

    def predict() -> Found:
        pixels = torch.stack([(image.float() - mean) / std for image in images])  # as effdet's loader does
        return [(one[:, :4], one[:, 4], one[:, 5].long() - 1) for one in theirs(pixels, info)]

    tools: dict[str, Tool] = {"effdet": predict, **optimized(ours, images, compile=compile)}
    return Contest(
        name="EfficientDet-D0 end to end",
        tools=tools,
        exact=frozenset({*tools} - {"effdet", "boxmill, bf16"}),
        bars={"boxmill, fp32": 1.2},
    )


@torch.no_grad()
def ssd(images: list[Tensor]) -> Contest:
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    for conv in theirs.head.classification_head.module_list:
        conv.weight *= 0.3
        conv.bias.view(-1, CLASSES)[:, 0] += 4.0  # background, or hundreds of thousands of pairs pass
    ours = create(
        "ssd300_vgg16",
        num_classes=CLASSES - 1,
        box_strides=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
        clip_boxes=True,
    ).eval()
    assert isinstance(ours, SSD)
    load_named(ours, torchvision_ssd(theirs.state_dict(), num_boxes=ours.default_boxes.num_boxes), "ssd300_vgg16")
    tools: dict[str, Tool] = {
        "torchvision": lambda: of_torchvision(theirs([image.float() / 255 for image in images]), first_label=1),
        **optimized(ours, images, compile=False),
    }
    return Contest(name="SSD300 end to end", tools=tools, exact=frozenset({"boxmill, fp32"}))


def liven_head(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.startswith("head.") and name.endswith("weight"):
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def raise_bias(bias: Tensor, logits: Tensor, images: int, *, threshold: float) -> None:
    """Moves all classes' bias so that about ``CANDIDATES`` scores an image exceed the threshold."""
    wanted = logits.flatten().topk(CANDIDATES * images).values[-1]
    bias += torch.tensor(threshold).logit() - wanted


def main() -> int:
    load_before = load_average()
    arguments = arguments_of(__doc__ or "", batch=8, size=512)
    images, small = random_images(arguments.batch, arguments.size), random_images(arguments.batch, 300)
    compile = not arguments.no_compile
    contests = (*retinanet(images, compile=compile), efficientdet(images, compile=compile), ssd(small))
    return hold("dense", contests, arguments, load_before=load_before)


if __name__ == "__main__":
    sys.exit(main())
