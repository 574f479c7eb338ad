"""What is true of the dense classification losses whatever the logits and the matching."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors.blocks.class_losses import CLASS_LOSSES, ClassLossOptions, dense_class_loss
from detectors.blocks.matchers import IGNORED


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (B, N, 3), matched_idxs (B, N), labels of the positives, anchors (N, 4)."""
    batch, anchors = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(batch, anchors, 3, generator=generator) * draw(st.sampled_from([0.1, 3.0, 30.0]))
    matched = torch.tensor(
        draw(st.lists(st.lists(st.integers(-2, 2), min_size=anchors, max_size=anchors), min_size=batch, max_size=batch))
    )
    labels = torch.randint(0, 2, (int((matched >= 0).sum()),), generator=generator)
    corner = torch.rand(anchors, 2, generator=generator) * 20
    return logits, matched, labels, torch.cat([corner, corner + 1 + torch.rand(anchors, 2, generator=generator) * 9], 1)


backgrounds = st.sampled_from(["none", "first", "last"])


@settings(max_examples=60, deadline=None)
@given(case=cases(), kind=st.sampled_from(CLASS_LOSSES), background=backgrounds, cut=st.integers(0, 12))
def test_levels_only_cut_the_anchors_and_images_stand_alone(case, kind, background, cut) -> None:
    logits, matched, labels, anchors = case
    options = ClassLossOptions(loss=kind, ohem_batch=3)

    def of(levels, matched=matched, labels=labels):
        return dense_class_loss(levels, matched, labels, options, anchors=anchors, background=background)

    whole = of([logits])
    assert whole.shape == (len(logits),) and bool((whole >= 0).all()) and bool(whole.isfinite().all())
    cut = min(cut, logits.shape[1])
    torch.testing.assert_close(of([logits[:, :cut], logits[:, cut:]]), whole)
    image = (matched >= 0).nonzero()[:, 0]
    alone = [of([logits[i : i + 1]], matched[i : i + 1], labels[image == i]) for i in range(len(logits))]
    torch.testing.assert_close(torch.cat(alone), whole)


@settings(max_examples=60, deadline=None)
@given(case=cases(), kind=st.sampled_from(CLASS_LOSSES), background=backgrounds)
def test_what_an_ignored_anchor_says_changes_nothing(case, kind, background) -> None:
    logits, matched, labels, anchors = case
    options = ClassLossOptions(loss=kind, ohem_batch=3)
    other = torch.where((matched == IGNORED)[..., None], 5 - logits, logits).requires_grad_()
    first, second = (
        dense_class_loss([x], matched, labels, options, anchors=anchors, background=background) for x in (logits, other)
    )
    torch.testing.assert_close(second.detach(), first)
    (gradient,) = torch.autograd.grad(second.sum(), other)
    assert gradient[matched == IGNORED].abs().sum() == 0


@settings(max_examples=60, deadline=None)
@given(case=cases(), background=backgrounds)
def test_mining_everything_is_plain_cross_entropy_and_mining_some_is_less(case, background) -> None:
    logits, matched, labels, anchors = case

    def of(**options):
        return dense_class_loss(
            [logits], matched, labels, ClassLossOptions(**options), anchors=anchors, background=background
        )

    everything = of(loss="ce")
    torch.testing.assert_close(of(loss="ohem", ohem_nms_iou=1.0), everything)
    torch.testing.assert_close(of(loss="hard_negative", min_negatives=12), everything)
    torch.testing.assert_close(2 * of(loss="alpha_ce", ce_alpha=0.5), everything)
    torch.testing.assert_close(2 * of(loss="focal", focal_gamma=0.0, focal_alpha=0.5), everything)
    slack = 1e-5 * (1 + everything)
    for mined in (of(loss="ohem", ohem_batch=2), of(loss="hard_negative"), of(loss="focal", focal_alpha=1.0)):
        assert bool((mined <= everything + slack).all())
