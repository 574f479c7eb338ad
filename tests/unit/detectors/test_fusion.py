"""Weighted-boxes fusion against a naive loop after the paper, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.fusion import FusedBoxes, fuse_boxes


def naive(boxes, scores, groups, models, weights, iou_threshold):
    """Solovyev et al. 2019, section 3, step by step; (group, score, box, members) of each cluster."""
    found = []
    for group in sorted(set(groups.tolist())):
        ranked = sorted(
            (i for i in np.flatnonzero(groups == group) if scores[i] * weights[models[i]] > 0),
            key=lambda i: (-scores[i] * weights[models[i]], i),
        )
        clusters, fused = [], []
        for i in ranked:
            ious = [_iou(box, boxes[i]) for box in fused]
            if ious and max(ious) > iou_threshold:
                at = ious.index(max(ious))
                clusters[at].append(i)
            else:
                at = len(clusters)
                clusters.append([i])
                fused.append(None)
            mass = np.array([scores[j] * weights[models[j]] for j in clusters[at]])
            fused[at] = (boxes[clusters[at]] * mass[:, None]).sum(0) / mass.sum()
        for members, box in zip(clusters, fused):
            mean = np.mean([scores[j] * weights[models[j]] for j in members])
            score = mean * min(len(weights), len(members)) / sum(weights)
            found.append((group, min(score, 1.0), box, members))
    return sorted(found, key=lambda c: (c[0], -c[1]))


def _iou(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def heaps(seed: int, objects: int = 60, models: int = 3, groups: int = 12):
    """Each model sees most objects, a bit moved, some of them twice."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 300, (objects, 2))
    truth = np.concatenate([corner, corner + rng.uniform(20, 90, (objects, 2))], 1)
    seen = rng.integers(0, objects, objects * models)
    boxes = truth[seen] + rng.normal(0, 4, (len(seen), 4))
    group = (seen % groups) * 7 - 3  # with gaps, some below 0
    return boxes, rng.uniform(0.01, 1, len(seen)), group, rng.integers(0, models, len(seen))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5), (0.0, 3.0, 1.0)])
def test_equals_the_papers_steps(seed: int, weights: tuple[float, ...]) -> None:
    boxes, scores, groups, models = heaps(seed, groups=1 + 5 * (seed % 3))
    fused = fuse_boxes(boxes, scores, groups, models, weights, iou_threshold=0.4)
    expected = naive(boxes, scores, groups, models, weights, 0.4)
    assert fused.groups.tolist() == [c[0] for c in expected]
    np.testing.assert_allclose(fused.scores, [c[1] for c in expected], rtol=1e-12)
    np.testing.assert_allclose(fused.boxes, [c[2] for c in expected], rtol=1e-12)
    assert max(len(c[3]) for c in expected) >= 3, "the scene has clusters"
    for i, (_, _, _, members) in enumerate(expected):
        assert sorted(members) == np.flatnonzero(fused.cluster == i).tolist()
        assert fused.best[i] == members[0]
    assert (fused.cluster == -1).tolist() == (np.array(weights)[models] == 0).tolist()


def test_equals_ensemble_boxes() -> None:
    """The authors' own package, where it is installed; its boxes are in 0..1."""
    package = pytest.importorskip("ensemble_boxes", reason="ensemble-boxes is not installed")
    for seed in range(4):
        boxes, scores, labels, models = heaps(seed)
        boxes = np.clip(boxes, 0, 400) / 400
        weights = [1.0, 2.0, 1.5]
        of = [models == t for t in range(3)]
        theirs = package.weighted_boxes_fusion(
            [boxes[m] for m in of], [scores[m] for m in of], [labels[m] for m in of], weights=weights, iou_thr=0.55
        )
        ours = fuse_boxes(boxes, scores, labels, models, weights)
        by = np.argsort(-ours.scores)
        order = np.argsort(-np.minimum(theirs[1], 1), kind="stable")
        np.testing.assert_allclose(ours.scores[by], np.minimum(theirs[1], 1)[order], atol=1e-6)
        np.testing.assert_allclose(ours.boxes[by], theirs[0][order], atol=1e-6)
        assert ours.groups[by].tolist() == theirs[2][order].astype(int).tolist()


def fuse(boxes, scores, models, weights=(1.0, 1.0), groups=None, **options) -> FusedBoxes:
    groups = np.zeros(len(scores), np.int64) if groups is None else np.array(groups)
    return fuse_boxes(
        np.array(boxes, float).reshape(-1, 4), np.array(scores), groups, np.array(models, int), weights, **options
    )


def test_by_hand() -> None:
    fused = fuse([[0, 0, 10, 10], [0, 0, 10, 14], [50, 50, 60, 60]], [0.8, 0.4, 0.6], [0, 1, 1])
    # (0.8 * 10 + 0.4 * 14) / 1.2; both models have it. The other box is one model's alone: half its score.
    np.testing.assert_allclose(fused.boxes, [[0, 0, 10, 13.6 / 1.2], [50, 50, 60, 60]])
    np.testing.assert_allclose(fused.scores, [0.6, 0.3])
    assert fused.cluster.tolist() == [0, 0, 1] and fused.best.tolist() == [0, 2]


def test_a_score_stays_within_one() -> None:
    fused = fuse([[0, 0, 10, 10]] * 2, [1.0, 1.0], [0, 0], weights=(3.0, 1.0))
    assert fused.scores.tolist() == [1.0]


def test_groups_never_meet_and_nothing_gives_nothing() -> None:
    fused = fuse([[0, 0, 10, 10]] * 3, [0.5, 0.6, 0.7], [0, 1, 1], groups=[4, 2, 4])
    assert fused.groups.tolist() == [2, 4] and fused.cluster.tolist() == [1, 0, 1]
    nothing = fuse([], [], [])
    assert nothing.boxes.shape == (0, 4) and len(nothing.cluster) == 0


def test_boxes_without_area_stay_alone() -> None:
    assert len(fuse([[5, 5, 5, 9]] * 2, [0.5, 0.4], [0, 1]).scores) == 2


def test_what_cannot_be_fused_is_refused() -> None:
    box = [[0, 0, 1, 1]]
    for weights in ((), (0.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="weights"):
            fuse(box, [0.5], [0], weights=weights)
    with pytest.raises(ValueError, match="models 2 to 2"):
        fuse(box, [0.5], [2])
    with pytest.raises(ValueError, match="must be as many"):
        fuse(box, [0.5, 0.4], [0, 0])
    with pytest.raises(ValueError, match="iou_threshold"):
        fuse(box, [0.5], [0], iou_threshold=1.0)
