"""Proposals of a batch: windows by hand, pixels back from a batch, mirror images, what is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.base import Preprocessing
from detectors.batching import make_batch
from detectors.blocks.proposals import ProposalOptions, Proposer, SlidingWindow, to_pixels
from detectors.blocks.proposals_search import SelectiveSearch

ODD = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), size=96, divisor=32)


def noise(seed: int, height: int = 64, width: int = 96) -> Tensor:
    """Blocks of 8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (3, height // 8, width // 8), dtype=torch.uint8, generator=generator)
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


def windows_by_loops(window: SlidingWindow, height: int, width: int) -> list[list[float]]:
    found = []
    for scale in window.scales:
        for ratio in window.ratios:
            area = scale**2 * height * width
            h, w = min(math.sqrt(area * ratio), height), min(math.sqrt(area / ratio), width)
            rows, columns = math.ceil((height - h) / (window.step * h)), math.ceil((width - w) / (window.step * w))
            for row in range(rows + 1):
                for column in range(columns + 1):
                    y, x = (height - h) * row / max(rows, 1), (width - w) * column / max(columns, 1)
                    found.append([x, y, x + w, y + h])
    return found


def test_windows_against_a_loop() -> None:
    window = SlidingWindow(scales=(1.0, 0.5, 0.2), ratios=(0.5, 1.0, 3.0), step=0.4, limit=10**6)
    found, expected = window.propose(50, 80), windows_by_loops(window, 50, 80)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found.min() == 0 and found[:, 2].max() == pytest.approx(80) and found[:, 3].max() == pytest.approx(50)

    every = SlidingWindow(scales=(1.0, 0.5, 0.2), ratios=(0.5, 1.0, 3.0), step=0.4, limit=7).propose(50, 80)
    assert len(every) == 7 and np.array_equal(every[[0, -1]], found[[0, -1]])


def test_the_windows_that_there_are_by_default_are_about_as_many_as_proposals() -> None:
    every = SlidingWindow(limit=10**6)
    assert 1500 < len(every.propose(480, 640)) < 2600 and len(SlidingWindow().propose(480, 640)) <= 2000


def test_pixels_come_back_from_a_batch() -> None:
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 96, 1)[:, :, :96].contiguous()
    image = torch.cat([image[:, :48], 255 - image[:, :48]], 1)
    batch = make_batch([image], ODD)
    assert torch.equal(to_pixels(batch.images[0], ODD), image)


def test_proposals_of_a_batch_are_those_of_each_image_alone() -> None:
    images = [noise(0), noise(1, 96, 48)]
    proposer = Proposer(ProposalOptions(search_min_side=0.0), ODD)
    found = proposer.propose(make_batch(images, ODD))
    for image, boxes in zip(images, found):
        searched = SelectiveSearch().propose(image.permute(1, 2, 0).contiguous().numpy())
        mirrored = SelectiveSearch().propose(image.flip(2).permute(1, 2, 0).contiguous().numpy())
        mirrored = np.stack(
            [image.shape[2] - mirrored[:, 2], mirrored[:, 1], image.shape[2] - mirrored[:, 0], mirrored[:, 3]], 1
        )
        # Which of the two is searched is the digests' choice.
        assert boxes.dtype == torch.float32 and boxes.tolist() in (searched.tolist(), mirrored.tolist())
        assert len(boxes) > 20

    windows = Proposer(ProposalOptions(proposal_method="sliding_window", proposals=50), ODD)
    for boxes, (height, width) in zip(windows.propose(make_batch(images, ODD)), [(64, 96), (96, 48)]):
        expected = torch.from_numpy(SlidingWindow(limit=50).propose(height, width)).float()
        assert torch.equal(boxes, expected)


def test_a_large_image_is_searched_shrunk() -> None:
    image = noise(2)
    small = Proposer(ProposalOptions(search_size=48, search_min_side=6.0), ODD)
    (boxes,) = small.propose(make_batch([image], ODD))
    assert (boxes % 2 == 0).all() and ((boxes[:, 2:] - boxes[:, :2]) >= 12).all()
    assert [0.0, 0.0, 96.0, 64.0] in boxes.tolist()


def test_an_image_and_its_mirror_image_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    search = SelectiveSearch.propose

    def count(self: SelectiveSearch, image: np.ndarray) -> np.ndarray:
        searched.append(image.shape)
        return search(self, image)

    monkeypatch.setattr(SelectiveSearch, "propose", count)
    image, other = noise(3), noise(4)
    proposer = Proposer(ProposalOptions(search_colours=("lab",)), ODD)
    (boxes,) = proposer.propose(make_batch([image], ODD))
    (mirrored,) = proposer.propose(make_batch([image.flip(2)], ODD))
    (again,) = proposer.propose(make_batch([image], ODD))
    assert len(searched) == 1 and torch.equal(again, boxes)
    assert torch.equal(
        torch.stack([96 - mirrored[:, 2], mirrored[:, 1], 96 - mirrored[:, 0], mirrored[:, 3]], 1), boxes
    )
    proposer.propose(make_batch([other, image], ODD))
    assert len(searched) == 2

    forgetful = Proposer(ProposalOptions(search_colours=("lab",), proposal_cache=0), ODD)
    for _ in range(2):
        assert torch.equal(forgetful.propose(make_batch([image], ODD))[0], boxes)
    assert len(searched) == 4


def test_so_many_images_are_kept_and_no_more() -> None:
    proposer = Proposer(ProposalOptions(proposal_cache=3, search_colours=("grey",), search_scales=(200.0,)), ODD)
    for seed in range(8):
        (found,) = proposer.propose(make_batch([noise(seed, 32, 40)], ODD))
        (again,) = proposer.propose(make_batch([noise(seed, 32, 40)], ODD))
        assert torch.equal(found, again)
        assert len(proposer._kept) == len(proposer._keys) == min(seed + 1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposal_method": "edge_boxes"}, "proposal_method is 'edge_boxes'; choose one of selective_search, slid"),
        ({"proposals": 0}, "proposals is 0; it must be at least 1"),
        ({"window_step": 0.0}, "step 0.0 must all be above 0"),
        ({"search_colours": ("cmyk",)}, "colour space 'cmyk' is not known"),
    ],
)
def test_bad_options_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProposalOptions(**options)
