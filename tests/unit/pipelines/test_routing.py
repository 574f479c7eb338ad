"""Predictions are divided by rules: every image once, every object kept or counted, each set an ordinary label set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.maintenance import verify
from pipelines.predictions import PredictionSet, open_predictions
from pipelines.records import Annotations, Category, LabelMap
from pipelines.route_rules import ROUTES, RouteRules, decide, draw, keep_budget
from pipelines.routing import find_predictions, route
from pipelines.schema import LabelRow
from pipelines.shard_writing import label_rows
from pipelines.uncertainty import image_uncertainty, object_uncertainty
from pipelines.versions import open_dataset
from tests.evaluated import synthetic_records, write_dataset, write_guesses
from tests.making import LABEL_MAP, annotations, commit_records, record

CATS = LabelMap(categories=(Category(category_id=3, name="cat"), Category(category_id=5, name="dog")))


def routes(rules: RouteRules, images: list[list[tuple[str, float]]], failed: tuple[int, ...] = ()) -> list[str]:
    """The route of each image, which is a list of (class, score)."""
    return [ROUTES[at] for at in decided(rules, images, failed).routes]


def decided(rules: RouteRules, images: list[list[tuple[str, float]]], failed: tuple[int, ...] = ()):
    objects = [(i, CATS.names.index(name), score) for i, found in enumerate(images) for name, score in found]
    columns = np.array(objects, np.float64).reshape(-1, 3).T
    return decide(
        rules,
        CATS,
        image_ids=[f"{i}.jpg" for i in range(len(images))],
        failed=np.isin(np.arange(len(images)), failed),
        images=columns[0].astype(np.int64),
        labels=columns[1].astype(np.int64),
        scores=columns[2],
    )


def test_scores_decide():
    rules = RouteRules(accept=0.7, reject=0.3)
    images = [
        [("cat", 0.7), ("dog", 0.95)],  # all sure, the threshold itself too
        [("cat", 0.9), ("dog", 0.29)],  # sure but for noise
        [("cat", 0.9), ("dog", 0.3)],  # one in doubt
        [("cat", 0.2)],
        [],
        [("cat", 0.99)],
    ]
    assert routes(rules, images, failed=(5,)) == ["accept", "accept", "review", "reject", "reject", "reject"]
    assert routes(replace(rules, empty="review"), images)[3:] == ["review", "review", "accept"]
    assert routes(replace(rules, empty="accept"), images, failed=(4,))[3:] == ["accept", "reject", "accept"]


def test_thresholds_of_a_class():
    rules = RouteRules(accept=0.7, reject=0.3, accept_class={"dog": 0.9}, reject_class={"dog": 0.8})
    images = [[("cat", 0.75)], [("dog", 0.85)], [("dog", 0.75)], [("dog", 0.95)]]
    assert routes(rules, images) == ["accept", "review", "reject", "accept"]
    with pytest.raises(ValueError, match=r"the class 'dgo'.*did you mean 'dog'"):
        decided(RouteRules(accept_class={"dgo": 0.9}), images)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"accept": 1.5}, "accept=1.5"),
        ({"accept": 0.2, "reject": 0.3}, "0.3 is above its accept threshold 0.2"),
        ({"reject_class": {"dog": 0.9}}, "of class 'dog' is above"),
        ({"empty": "keep"}, "accept, review, reject"),
        ({"uncertainty": "entropie"}, "margin, entropy"),
        ({"review_budget": -1}, "review_budget=-1"),
        ({"max_uncertainty": float("nan")}, "max_uncertainty=nan"),
    ],
)
def test_bad_rules_are_refused(values: dict, told: str):
    with pytest.raises(ValueError, match=told):
        RouteRules(**values)


def test_the_most_uncertain_are_reviewed_within_a_budget():
    images = [[("cat", s)] for s in (0.35, 0.5, 0.65, 0.45, 0.9)]
    found = keep_budget(decided(RouteRules(), images), 2)
    assert [ROUTES[at] for at in found.routes] == ["reject", "review", "reject", "review", "accept"]
    assert found.counts()["reject"] == {"over the review budget": 2}
    assert keep_budget(found, 2) is found


def test_sure_images_are_reviewed_where_that_is_asked():
    images = [[("cat", 0.99)] * 3, [("cat", 0.75)]]
    assert routes(RouteRules(max_uncertainty=0.4), images) == ["accept", "review"]
    assert routes(RouteRules(max_uncertainty=0.4, aggregate="mean"), [[("cat", 0.75), *images[0]]]) == ["accept"]
    many = [[("cat", 0.9)]] * 2000
    audited = routes(RouteRules(audit=0.1), many)
    assert 140 < audited.count("review") < 260
    assert audited == routes(RouteRules(audit=0.1), many)
    assert [draw(f"{i}.jpg") < 0.1 for i in range(2000)] == [r == "review" for r in audited]


def test_uncertainty():
    scores = np.array([0.0, 0.25, 0.5, 1.0])
    assert object_uncertainty(scores, "margin").tolist() == [0, 0.5, 1, 0]
    assert object_uncertainty(scores, "least_confident").tolist() == [1, 0.75, 0.5, 0]
    np.testing.assert_allclose(object_uncertainty(scores, "entropy"), [0, 0.8112781, 1, 0], atol=1e-7)
    values, images = np.array([0.5, 0.1, 0.3]), np.array([0, 0, 2])
    assert image_uncertainty(values, images, 3, "max").tolist() == [0.5, 0, 0.3]
    np.testing.assert_allclose(image_uncertainty(values, images, 3, "mean"), [0.3, 0, 0.3])
    np.testing.assert_allclose(image_uncertainty(values, images, 3, "sum"), [0.6, 0, 0.3])


@pytest.fixture
def predictions(tmp_path: Path) -> PredictionSet:
    """Of 40 images; those of number 5, 15, ... could not be labelled."""
    records, label_map = synthetic_records(40, 0)
    dataset = write_dataset(tmp_path / "data", records, label_map)
    rng = np.random.default_rng(0)

    def predicted(number: int, row: LabelRow) -> LabelRow:
        assert row.annotations is not None
        scores = np.sort(rng.beta(*((60, 6), (6, 3), (2, 8))[number % 3], len(row.annotations)))[::-1]
        if number % 10 == 5:
            return replace(row, annotations=None, status="failed", error="cut")
        return replace(row, annotations=replace(row.annotations, scores=scores), status="ok", extra={"n": number})

    return write_guesses(dataset, [predicted(i, row) for i, row in enumerate(label_rows(records))], label_map)


def rows_by_id(reference: str) -> dict[str, LabelRow]:
    return {row.image_id: row for row in open_predictions(reference).rows()}


def test_every_image_goes_into_one_set(predictions: PredictionSet):
    rules = RouteRules(accept=0.8, reject=0.6)
    made = route(predictions.reference, rules)
    references = {one: version.reference for one, version in made.sets.items() if version is not None}
    assert references == {one: f"{predictions.uri}@labels/guesses-{one}:1" for one in ROUTES}
    before, sets = rows_by_id(predictions.reference), {one: rows_by_id(r) for one, r in references.items()}
    assert sorted(i for found in sets.values() for i in found) == sorted(before)
    assert sum(sum(reasons.values()) for reasons in made.reasons.values()) == made.num_images == 40
    assert made.reasons["reject"]["labelling failed"] == 4
    lost = 0
    for one, found in sets.items():
        assert sum(made.reasons[one].values()) == len(found) >= 3
        assert verify(references[one]) == []
        for image_id, row in found.items():
            old, new = before[image_id].annotations, row.annotations
            if old is None or new is None:
                assert one == "reject" and row.status == "failed" and old is new
                continue
            kept = old.scores >= (0 if one == "reject" else 0.6)
            lost += int((~kept).sum())
            expected = [i for i, k in enumerate(kept.tolist()) if k]
            assert new.ids.tolist() == old.ids[kept].tolist() and new.scores.tolist() == old.scores[kept].tolist()
            assert list(new.polygons) == [old.polygons[i] for i in expected]
            np.testing.assert_array_equal(new.boxes_xywh, old.boxes_xywh[kept])
            assert [None if k is None else k.tolist() for k in new.keypoints] == [
                None if old.keypoints[i] is None else old.keypoints[i].tolist() for i in expected
            ]
            sure = bool(len(new)) and bool((new.scores >= 0.8).all())
            assert one == ("accept" if sure else "review" if one != "reject" else "reject")
            assert row.extra["n"] == before[image_id].extra["n"]
            assert set(row.extra["route"]) == {"reason", "uncertainty"}
    assert lost == made.num_noise > 0
    ledger = made.sets["review"].ledger["annotations"]
    assert ledger["imported"] == made.sets["review"].num_objects and ledger["dropped"] > 0


def test_provenance_keeps_the_model_and_the_rules(predictions: PredictionSet):
    made = route(predictions.reference, RouteRules(accept=0.8, reject_class={"star": 0.5}), name="first")
    told = open_dataset(made.sets["accept"].reference).metadata["provenance"]
    assert told["model"]["uri"] == "models/guess"
    assert told["routed"]["digest"] == predictions.digest
    assert told["routed"]["rules"]["reject_class"] == {"star": 0.5}


def test_the_same_again_finds_it_and_other_rules_replace_it(predictions: PredictionSet):
    first = route(predictions.reference, RouteRules(accept=0.8, reject=0.6))
    again = route(predictions.reference, RouteRules(accept=0.8, reject=0.6))
    assert again.found and not first.found
    assert [v.reference for v in again.sets.values()] == [v.reference for v in first.sets.values()]
    all_in = route(predictions.reference, RouteRules(accept=0.0, reject=0.0, empty="accept"))
    assert {one: v.num_images for one, v in all_in.sets.items()} == {"accept": 36, "review": 0, "reject": 4}
    assert all_in.sets["review"].reference.endswith("guesses-review:2")
    assert len(rows_by_id(first.sets["review"].reference)) == first.sets["review"].num_images
    back = route(predictions.reference, RouteRules(accept=0.8, reject=0.6))
    assert not back.found and back.sets["review"].digest == first.sets["review"].digest
    assert back.sets["review"].ledger == first.sets["review"].ledger


def test_a_route_that_no_image_takes_has_no_set(predictions: PredictionSet):
    made = route(predictions.reference, RouteRules(accept=0.0, reject=0.0, empty="accept"), name="all")
    assert made.sets["review"] is None and made.reasons["review"] == {}
    assert made.to_json()["sets"]["review"] is None


def test_other_peoples_label_sets_stay(predictions: PredictionSet):
    write_guesses(open_dataset(predictions.uri), list(predictions.rows()), predictions.label_map, label_set="my-review")
    with pytest.raises(ValueError, match="'my-review' that no routing has made"):
        route(predictions.reference, name="my")
    with pytest.raises(ValueError, match="holds truth"):
        route(f"{predictions.uri}@labels/gt")


def test_masks_and_keypoints_of_every_kind_go_along(tmp_path: Path):
    """Polygons, runs and keypoints beside objects without; several row groups of nothing."""
    records = [record(number) for number in range(8)]
    uri = str(tmp_path / "data")
    commit_records(uri, records, plan_id="first")
    rows = []
    for number, row in enumerate(label_rows(records)):
        found = annotations(number % 4, seed=number)
        scores = np.array([0.9, 0.1, 0.8])[: len(found)]
        rows.append(replace(row, annotations=replace(found, scores=scores), status="ok"))
    guesses = write_guesses(open_dataset(uri), rows, LABEL_MAP)
    made = route(guesses.reference, RouteRules(accept=0.7, reject=0.3))
    accepted = rows_by_id(made.sets["accept"].reference)
    assert {len(row.annotations) for row in accepted.values()} == {1, 2}
    before = rows_by_id(guesses.reference)
    for image_id, row in accepted.items():
        kept: Annotations = row.annotations
        old = before[image_id].annotations
        places = [i for i in range(len(old)) if i != 1]
        assert list(kept.polygons) == [old.polygons[i] for i in places]
        assert list(kept.rles) == [old.rles[i] for i in places]
        assert list(kept.attributes) == [old.attributes[i] for i in places]
        assert kept.num_keypoints.tolist() == [old.num_keypoints[i] for i in places]


def test_how_people_name_predictions():
    assert find_predictions("/d", "first").endswith("/d@labels/first")
    assert find_predictions("/d@labels/gt:2", "first").endswith("/d@labels/first")
    assert find_predictions("/d", "/e@labels/x:1") == "/e@labels/x:1"
    assert find_predictions("/d@labels/x") == "/d@labels/x"
