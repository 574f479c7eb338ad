"""Prediction sets fused into one: what becomes of rows, categories, masks, failures and shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detectors.fusion import fuse_boxes
from flows.cli import app, console
from pipelines import open_dataset, open_predictions
from pipelines.ledger import Ledger
from pipelines.predictions import PredictionSet, commit_predictions, write_predictions
from pipelines.records import Annotations, Category, LabelMap, Rle
from pipelines.schema import LabelRow
from pipelines.shard_paths import shard_stem
from pipelines.shards import read_labels
from pipelines.storage import Store
from tests.evaluated import guessed_rows, synthetic_records, write_dataset, write_guesses
from tests.making import LABEL_MAP, commit_records, record
from workers.evaluate import evaluate
from workers.fuse import FuseConfig, common_label_map, fuse

BALL, PERSON = 0, 7


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Two shards of four images."""
    uri = tmp_path / "data"
    commit_records(uri, [record(i) for i in range(4)], plan_id="one")
    commit_records(uri, [record(i, prefix="b") for i in range(4)], plan_id="two")
    return str(uri)


def found(boxes: Sequence[Sequence[float]], scores: Sequence[float], category: int = BALL) -> Annotations:
    return Annotations.from_boxes(np.array(boxes, float), np.full(len(scores), category), scores=np.array(scores))


def predict(
    uri: str, name: str, of_image: dict[str, Annotations | str], label_map: LabelMap = LABEL_MAP, tasks: int = 2
) -> PredictionSet:
    """A prediction set; images that are not named have no objects, a text is why one failed."""
    files = []
    for shard in open_dataset(uri).shards:
        rows = [_row(row, of_image.get(row.image_id, found([], []))) for row in read_labels(shard)]
        size = len(rows) // tasks
        for first in range(0, len(rows), size):
            stem = shard_stem(shard.image_path)
            files.append(write_predictions(Store.open(uri), name, stem, rows[first : first + size]))
    ledger = Ledger()
    ledger.imported("image", sum(file.rows for file in files))
    version = commit_predictions(
        uri,
        name,
        files,
        plan_id=f"of-{name}",
        label_map=label_map,
        images_version=1,
        ledger=ledger,
        provenance={"model": {"digest": name}},
    )
    return open_predictions(version.reference)


def _row(row: LabelRow, objects: Annotations | str) -> LabelRow:
    if isinstance(objects, str):
        return replace(row, annotations=None, status="failed", error=objects, extra={})
    return replace(row, annotations=objects, status="ok", extra={})


def rows_of(reference: str) -> dict[str, LabelRow]:
    return {row.image_id: row for row in open_predictions(reference).rows()}


def test_each_image_of_each_shard_is_fused_for_itself(dataset: str) -> None:
    predict(dataset, "one", {"a/1.jpg": found([[2, 2, 10, 10]], [0.8]), "b/3.jpg": found([[0, 0, 4, 4]], [0.6])})
    two = {"a/1.jpg": found([[2, 2, 10, 12]], [0.4]), "a/2.jpg": found([[2, 2, 10, 10]], [0.5], PERSON)}
    predict(dataset, "two", two, tasks=1)
    made = fuse(FuseConfig(dataset=dataset, predictions=("one", "two"), out="both"))
    assert (made.num_images, made.num_objects, made.num_detections, made.found) == (8, 3, 4, False)
    rows = rows_of(made.reference)
    assert {image_id: len(row.annotations) for image_id, row in rows.items() if len(row.annotations)} == {
        "a/1.jpg": 1,
        "a/2.jpg": 1,
        "b/3.jpg": 1,
    }
    fused = rows["a/1.jpg"].annotations
    np.testing.assert_allclose(fused.boxes_xywh, [[2, 2, 10, (0.8 * 10 + 0.4 * 12) / 1.2]])
    np.testing.assert_allclose(fused.scores, [0.6])
    assert rows["a/2.jpg"].annotations.category_ids.tolist() == [PERSON]
    np.testing.assert_allclose(rows["b/3.jpg"].annotations.scores, [0.3])
    assert {row.status for row in rows.values()} == {"ok"}
    told = open_predictions(made.reference).provenance
    assert [(f["weight"], f["provenance"]) for f in told["fused"]] == [
        (1.0, {"model": {"digest": "one"}}),
        (1.0, {"model": {"digest": "two"}}),
    ]
    # One file a shard, in the dataset's own places.
    version = open_dataset(made.reference)
    assert [s.rows for s in version.shards] == [4, 4]
    assert version.index()["row"].to_pylist() == [0, 1, 2, 3] * 2


def test_the_same_call_again_finds_what_is_there_and_another_is_refused(dataset: str) -> None:
    for name in ("one", "two"):
        predict(dataset, name, {"a/1.jpg": found([[2, 2, 10, 10]], [0.8])})
    config = FuseConfig(dataset=dataset, predictions=("one", "two"), out="both")
    first, again = fuse(config), fuse(config)
    assert again.found and (again.reference, again.digest) == (first.reference, first.digest)
    with pytest.raises(ValueError, match="'both' already, which is no fusion of these"):
        fuse(replace(config, weights=(1.0, 2.0)))
    with pytest.raises(ValueError, match="'gt' already"):
        fuse(replace(config, out="gt"))


def test_an_image_that_failed_in_one_set_is_the_others_alone(dataset: str) -> None:
    predict(dataset, "one", {"a/1.jpg": "decode: BadImage: cut", "a/2.jpg": "read: gone"})
    predict(dataset, "two", {"a/1.jpg": found([[2, 2, 10, 10]], [0.8]), "a/2.jpg": "read: gone"})
    made = fuse(FuseConfig(dataset=dataset, predictions=("one", "two"), out="both"))
    rows = rows_of(made.reference)
    assert rows["a/1.jpg"].status == "ok" and rows["a/1.jpg"].error is None
    np.testing.assert_allclose(rows["a/1.jpg"].annotations.scores, [0.8]), "no vote against it"
    assert (rows["a/2.jpg"].status, rows["a/2.jpg"].error) == ("failed", "read: gone")
    ledger = open_dataset(made.reference).metadata["plan_ledger"]
    assert (ledger["images"]["imported"], ledger["images"]["quarantined"]) == (7, 1)


def test_masks_and_keypoints_are_the_best_members(dataset: str) -> None:
    rle = Rle(size=(16, 24), counts=(10, 5, 369))
    points = np.array([[3.0, 4, 2], [5, 6, 1]])
    masked = replace(
        found([[2, 2, 10, 10]], [0.9], PERSON),
        rles=(rle,),
        keypoints=(points,),
        num_keypoints=np.array([2]),
        area=np.array([5.0]),
        attributes=({"from": "one"},),
    )
    predict(dataset, "one", {"a/1.jpg": masked})
    predict(dataset, "two", {"a/1.jpg": found([[2, 2, 10, 11], [15, 2, 4, 4]], [0.5, 0.4], PERSON)})
    fused = rows_of(fuse(FuseConfig(dataset=dataset, predictions=("one", "two"), out="both")).reference)["a/1.jpg"]
    assert fused.annotations.rles == (rle, None) and fused.annotations.attributes == ({"from": "one"}, {})
    assert fused.annotations.area.tolist() == pytest.approx([5.0, 16.0])
    np.testing.assert_array_equal(fused.annotations.keypoints[0], points)
    assert fused.annotations.keypoints[1] is None and fused.annotations.num_keypoints.tolist() == [2, -1]


def test_categories_are_matched_by_name() -> None:
    def of(*named: tuple[int, str]) -> LabelMap:
        return LabelMap(categories=tuple(Category(category_id=i, name=n) for i, n in named))

    both = common_label_map([of((1, "a"), (2, "b")), of((1, "b"), (2, "c"), (9, "d"))])
    assert [(c.category_id, c.name) for c in both.categories] == [(1, "a"), (2, "b"), (3, "c"), (9, "d")]


def test_sets_with_other_ids_for_the_same_names_are_fused_by_name(dataset: str) -> None:
    other = LabelMap(categories=(Category(category_id=7, name="ball"), Category(category_id=8, name="car")))
    predict(dataset, "one", {"a/1.jpg": found([[2, 2, 10, 10]], [0.8], BALL)})
    predict(dataset, "two", {"a/1.jpg": found([[2, 2, 10, 10]], [0.8], 7)}, other)
    fused = rows_of(fuse(FuseConfig(dataset=dataset, predictions=("one", "two"), out="both")).reference)["a/1.jpg"]
    assert fused.annotations.category_ids.tolist() == [BALL]
    np.testing.assert_allclose(fused.annotations.scores, [0.8])


def test_threshold_weights_and_limit(dataset: str) -> None:
    many = found([[3.0 * i, 1, 2, 2] for i in range(6)], [0.9, 0.8, 0.7, 0.6, 0.5, 0.1])
    predict(dataset, "one", {"a/1.jpg": many})
    predict(dataset, "two", {"a/1.jpg": many})
    config = FuseConfig(dataset=dataset, predictions=("one", "two"), out="x", weights=(3.0, 1.0), score_threshold=0.2)
    fused = rows_of(fuse(replace(config, max_detections=3)).reference)["a/1.jpg"]
    np.testing.assert_allclose(fused.annotations.scores, [0.9, 0.8, 0.7])
    assert len(rows_of(fuse(replace(config, out="y")).reference)["a/1.jpg"].annotations) == 5
    first_alone = fuse(replace(config, out="z", weights=(1.0, 0.0), score_threshold=0.0))
    # A set of weight 0 still is one of two: what only the other has counts as the paper says.
    np.testing.assert_allclose(rows_of(first_alone.reference)["a/1.jpg"].annotations.scores[0], 0.9)


def test_many_images_at_once_are_as_each_alone() -> None:
    records, label_map = synthetic_records(24, 0)
    rows = [guessed_rows(records, skill=0.9, seed=seed) for seed in (1, 2)]
    from workers.fuse import fuse_rows

    config = FuseConfig(dataset="d", predictions=("a", "b"), out="c")
    together = fuse_rows(rows, [label_map] * 2, label_map, (1.0, 2.0), config)
    for i, row in enumerate(together):
        alone = [of_set[i].annotations for of_set in rows]
        expected = fuse_boxes(
            np.concatenate([a.boxes for a in alone]),
            np.concatenate([a.scores for a in alone]),
            np.concatenate([a.category_ids for a in alone]),
            np.repeat([0, 1], [len(a) for a in alone]),
            (1.0, 2.0),
        )
        np.testing.assert_allclose(row.annotations.scores, -np.sort(-expected.scores))
        assert sorted(row.annotations.category_ids.tolist()) == sorted(expected.groups.tolist())


def test_fusion_of_two_models_is_better_than_either(tmp_path: Path) -> None:
    """Each model loses other objects and moves boxes its own way."""
    records, label_map = synthetic_records(60, 0)
    dataset = write_dataset(tmp_path / "scenes", records, label_map)
    for name, skill, seed in (("one", 0.85, 1), ("two", 0.8, 2)):
        write_guesses(dataset, guessed_rows(records, skill=skill, seed=seed), label_map, label_set=name)
    both = fuse(FuseConfig(dataset=dataset.uri, predictions=("one", "two"), out="both"))
    references = [f"{dataset.uri}@labels/one", f"{dataset.uri}@labels/two", both.reference]
    one, two, fused = (evaluate(dataset.reference, r, resamples=0).stats["AP"] for r in references)
    assert fused > max(one, two) + 0.05


def test_what_cannot_be_fused_is_refused(dataset: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        predict(dataset, name, {})
    other = str(tmp_path / "other")
    commit_records(other, [record(i) for i in range(4)], plan_id="one")
    predict(other, "three", {})
    with pytest.raises(ValueError, match="given twice: one, one"):
        fuse(FuseConfig(dataset=dataset, predictions=("one", "one"), out="x"))
    with pytest.raises(ValueError, match="of another dataset"):
        fuse(FuseConfig(dataset=dataset, predictions=("one", f"{other}@labels/three"), out="x"))
    for bad, told in (
        ({"predictions": ("one",)}, "give two or more"),
        ({"weights": (1.0,)}, "1 weights for 2"),
        ({"weights": (0.0, 0.0)}, "more than 0"),
        ({"iou_threshold": 0.0}, "iou_threshold=0.0"),
        ({"score_threshold": 1.0}, "score_threshold=1.0"),
        ({"max_detections": 0}, "max_detections=0"),
        ({"out": "a b"}, "a b"),
    ):
        with pytest.raises(ValueError, match=told):
            FuseConfig(**{"dataset": dataset, "predictions": ("one", "two"), "out": "x", **bad})


def test_sets_of_other_images_are_refused(dataset: str) -> None:
    predict(dataset, "one", {})
    rows = [replace(row, split="val") for shard in open_dataset(dataset).shards[:1] for row in read_labels(shard)]
    stem = shard_stem(open_dataset(dataset).shards[0].image_path)
    ledger = Ledger()
    ledger.imported("image", 4)
    rows = [replace(row, annotations=found([], []), status="ok") for row in rows]
    file = write_predictions(Store.open(dataset), "half", stem, rows)
    commit_predictions(
        dataset, "half", [file], plan_id="h", label_map=LABEL_MAP, images_version=1, ledger=ledger, provenance={}
    )
    with pytest.raises(ValueError, match="only predictions of the same images can be fused"):
        fuse(FuseConfig(dataset=dataset, predictions=("one", "half"), out="x"))


def test_from_the_command_line(dataset: str, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        predict(dataset, name, {"a/1.jpg": found([[2, 2, 10, 10]], [0.8])})
    words = ["fuse", dataset, "one", "two", "--out", "both", "--weight", "2", "--weight", "1", "--json"]
    assert app.run(words) == console.OK
    told = json.loads(capfd.readouterr().out)
    assert (told["num_objects"], told["num_detections"], told["found"]) == (1, 2, False)
    assert [f["weight"] for f in open_predictions(told["reference"]).provenance["fused"]] == [2.0, 1.0]
    assert app.run([*words[:-3], "--json"]) == console.BAD_INPUT, "one weight for two sets"
    assert "1 weights for 2" in capfd.readouterr().out
