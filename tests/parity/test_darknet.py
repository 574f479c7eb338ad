"""DarkNet-53 against timm's, with its random weights copied in."""

from __future__ import annotations

import timm
import torch
from torch import nn

from detectors.blocks.darknet import LEAK, DarkNet53


def test_maps_equal_timms() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("darknet53", features_only=True, out_indices=(3, 4, 5)).eval()
    for module in theirs.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = LEAK  # timm's is 0.01, where darknet has 0.1
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    ours = DarkNet53().eval()
    # Both list the same tensors in the same order, stem, stages, blocks.
    source = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    target = {k: v for k, v in ours.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(source) == len(target) == 52 * 5
    for mine, value in zip(target.values(), source.values()):
        assert mine.shape == value.shape
        mine.copy_(value)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours(images), theirs(images), strict=True):
            assert b.std() > 0.1
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
