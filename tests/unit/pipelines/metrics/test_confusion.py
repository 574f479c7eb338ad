"""Who is taken for whom, counted by hand."""

from __future__ import annotations

import numpy as np

from pipelines.metrics.confusion import confusion_matrix
from pipelines.metrics.matches import IGNORED, match_images
from pipelines.records import Annotations
from tests.matched import crowded_images, label_map

A, B, C = 1, 2, 3
HERE, THERE, AWAY = [0.0, 0, 50, 50], [200.0, 0, 50, 50], [0.0, 300, 50, 50]


def test_by_hand() -> None:
    truth = Annotations.from_boxes(np.array([HERE, THERE, AWAY]), np.array([A, B, C]))
    found = Annotations.from_boxes(
        np.array([HERE, HERE, HERE, THERE, THERE, [400.0, 400, 9, 9]]),
        np.array([B, A, A, A, C, C]),
        scores=np.array([0.9, 0.8, 0.7, 0.5, 0.6, 0.3]),
    )
    table = match_images([("a", truth)], [("a", found)], label_map(3))
    # HERE is found rightly, though another class was surer; THERE is the better one's, C's; AWAY is not found.
    expected = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [2, 1, 1, 0]])
    matrix = confusion_matrix(table)
    np.testing.assert_array_equal(matrix.counts, expected)
    assert matrix.most_confused() == [("class 1", "class 2", 1)]
    assert matrix.shares[0].tolist() == [1.0, 0, 0, 0] and matrix.shares[3].tolist() == [0.5, 0.25, 0.25, 0]
    assert matrix.to_json()["names"] == ["class 0", "class 1", "class 2", "background"]
    # Above 0.75, THERE is not found, and the second on HERE is no detection at all.
    expected = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 0, 0]])
    np.testing.assert_array_equal(confusion_matrix(table, score_threshold=0.75).counts, expected)


def test_every_truth_and_detection_is_counted_once() -> None:
    table = match_images(*crowded_images(7, crowds=0.2), label_map(4))
    for threshold in (0.0, 0.5):
        counts = confusion_matrix(table, score_threshold=threshold).counts
        truths = np.bincount(table.truth_labels[~table.truth_iscrowd], minlength=4)
        counted = (table.outcomes[:, 0, 0] != IGNORED) & (table.scores >= threshold)
        np.testing.assert_array_equal(counts[:-1].sum(1), truths)
        np.testing.assert_array_equal(counts[:, :-1].sum(0), np.bincount(table.labels[counted], minlength=4))
        assert counts[-1, -1] == 0 and counts[:-1, :-1].sum() > np.trace(counts[:-1, :-1]) > 0


def test_nothing_is_no_confusion() -> None:
    assert confusion_matrix(match_images([], [], label_map(2))).counts.tolist() == [[0] * 3] * 3
