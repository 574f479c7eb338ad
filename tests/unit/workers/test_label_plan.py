"""How labelling work is named and cut: the same input, model and settings give the same plan and tasks."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from pipelines.records import Category, LabelMap
from pipelines.references import CategoryMismatch
from workers.label_config import LabelConfig
from workers.label_listing import LISTING, LabelInput
from workers.label_plan import ModelFacts, make_plan, prediction_label_map, task_size
from workers.label_run import cpus_asked, gpus_asked
from workers.label_tasks import listed_tasks

CONFIG = LabelConfig(input="images.tar", model="model", out="out")
MODEL = ModelFacts(
    uri="model",
    digest="a" * 64,
    categories=({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}),
    spec={},
    preprocessing={"size": 320},
)
ARCHIVE = LabelInput(
    kind="archive",
    uri="images.tar",
    reference="images.tar",
    digest="d" * 32,
    num_images=100,
    listing=pa.Table.from_pylist(
        [
            {"name": f"{i}.jpg", "offset": i * 512, "length": 9, "size": 9, "stamp": "s", "method": 0}
            for i in range(100)
        ],
        schema=LISTING,
    ),
)


def label_map(*categories: tuple[int, str]) -> LabelMap:
    return LabelMap(categories=tuple(Category(category_id=i, name=name) for i, name in categories))


def plan_id(config: LabelConfig = CONFIG, source: LabelInput = ARCHIVE, model: ModelFacts = MODEL) -> str:
    return make_plan(config, source, model).plan_id


def test_a_plan_is_named_by_what_decides_the_result():
    assert plan_id() == plan_id()
    for change in (
        {"score_threshold": 0.1},
        {"max_detections": 5},
        {"image_size": 512},
        {"batch_size": 4},
        {"precision": "bfloat16"},
        {"task_images": 4},
        {"class_thresholds": {"dog": 0.3}},
        {"tile": 640},
        {"flips": True},
        {"near_duplicates": True},
        {"scales": (1.0, 1.5)},
    ):
        assert plan_id(replace(CONFIG, **change)) != plan_id(), change
    tiled = replace(CONFIG, tile=640)
    assert plan_id(replace(tiled, tile_overlap=0.3)) != plan_id(tiled)
    once = replace(CONFIG, near_duplicates=True)
    assert plan_id(replace(once, near_duplicate_bits=0)) != plan_id(once)
    assert plan_id(source=replace(ARCHIVE, digest="e" * 32)) != plan_id()
    assert plan_id(model=replace(MODEL, digest="b" * 64)) != plan_id()


def test_where_and_how_it_runs_is_no_part_of_the_plan():
    for change in (
        {"workers": 7},
        {"cpus_per_worker": 3},
        {"use_gpu": False},
        {"gpus_per_worker": 0.5},
        {"min_workers": 1},
        {"max_attempts": 1},
        {"price_per_hour": 2.0},
        {"ray_address": "auto"},
        {"coco_results": "r.json"},
        {"out": "elsewhere"},
        {"image_size": 320},  # the model's own
        {"near_duplicate_bits": 3},  # of nothing
        {"precision": "float32"},  # what "auto" means
        {"tile_overlap": 0.3},  # nothing is cut
    ):
        assert plan_id(replace(CONFIG, **change)) == plan_id(), change


@pytest.mark.parametrize(
    ("images", "size"), [(1, 8), (72, 8), (128, 8), (129, 9), (1000, 63), (4096, 256), (10**6, 256)]
)
def test_task_size(images, size):
    assert task_size(images) == size


def test_tasks_cover_every_member_once_in_order():
    plan = make_plan(CONFIG, ARCHIVE, MODEL)
    tasks = list(listed_tasks(ARCHIVE, plan))
    assert [t.num_rows for t in tasks] == [8] * 12 + [4]
    rows = [row for task in tasks for row in task.to_pylist()]
    assert [r["image_id"] for r in rows] == [f"{i}.jpg" for i in range(100)]
    assert [r["row"] for r in rows] == list(range(100))
    assert [r["coco_image_id"] for r in rows] == list(range(1, 101))
    assert [r["offset"] for r in rows] == [i * 512 for i in range(100)]


def test_an_archive_needs_a_place_and_gets_a_set_for_each_plan():
    with pytest.raises(ValueError, match="out=URI"):
        make_plan(replace(CONFIG, out=None), ARCHIVE, MODEL)
    first = make_plan(CONFIG, ARCHIVE, MODEL)
    second = make_plan(replace(CONFIG, score_threshold=0.5), ARCHIVE, MODEL)
    assert first.label_set.startswith("pred-aaaaaaaa-") and first.label_set != second.label_set


def test_classes_are_matched_by_name():
    dataset = label_map((7, "bird"), (3, "dog"), (9, "cat"))
    ours = prediction_label_map(dataset, MODEL.label_map, CONFIG, "ref")
    assert ours.digest == dataset.digest

    small = label_map((5, "cat"))
    with pytest.raises(CategoryMismatch, match=r"dog.*allow_extra_classes"):
        prediction_label_map(small, MODEL.label_map, CONFIG, "ref")
    wider = prediction_label_map(small, MODEL.label_map, replace(CONFIG, allow_extra_classes=True), "ref")
    assert [(c.category_id, c.name) for c in wider.categories] == [(5, "cat"), (6, "dog")]


def test_what_the_model_cannot_do_is_told_before_anything_starts():
    with pytest.raises(ValueError, match=r"class_thresholds names 'bird'.*it has cat, dog"):
        make_plan(replace(CONFIG, class_thresholds={"bird": 0.5}), ARCHIVE, MODEL)
    fixed = replace(MODEL, preprocessing={"size": 300, "resize": "stretch"})
    make_plan(replace(CONFIG, flips=True), ARCHIVE, fixed)
    with pytest.raises(ValueError, match=r"scales=.*300 x 300 pixels alone"):
        make_plan(replace(CONFIG, scales=(1.0, 2.0)), ARCHIVE, fixed)


def test_thresholds_of_a_file_are_those_of_the_plan(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"cat": 0.25, "dog": 0.5}')
    from_file = replace(CONFIG, thresholds=str(path))
    # Where the numbers come from is no part of the plan.
    assert plan_id(from_file) == plan_id(replace(CONFIG, class_thresholds={"dog": 0.5, "cat": 0.25})) != plan_id()
    both = make_plan(replace(from_file, class_thresholds={"dog": 0.75}), ARCHIVE, MODEL)
    assert both.settings["class_thresholds"] == {"cat": 0.25, "dog": 0.75}
    path.write_text('{"cat": 0.25, "bird": 0.5}')
    with pytest.raises(ValueError, match=rf"{path} names 'bird'.*it has cat, dog"):
        make_plan(from_file, ARCHIVE, MODEL)
    path.write_text('{"cat": 1}')
    with pytest.raises(ValueError, match=rf"{path} has 1.0 for 'cat'"):
        make_plan(from_file, ARCHIVE, MODEL)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        make_plan(replace(CONFIG, thresholds=str(tmp_path / "none.json")), ARCHIVE, MODEL)


def test_workers_leave_something_of_the_cluster():
    assert cpus_asked(2, 1, 4.0) == 1.0
    assert cpus_asked(2, 1, 2.0) == 0.75
    assert cpus_asked(1, 4, 4.0) == 3.5
    assert 2 * cpus_asked(2, 1, 2.0) < 2.0


def test_gpus_are_divided_or_given_as_asked():
    def asked(total, **settings):
        return gpus_asked(replace(CONFIG, **settings), total)

    assert (asked(0.0), asked(0.0, gpus_per_worker=0.5), asked(4.0, use_gpu=False)) == (0.0, 0.0, 0.0)
    assert (asked(1.0, workers=4), asked(8.0, workers=4)) == (0.25, 1.0)
    assert (asked(1.0, workers=2, gpus_per_worker=0.2), asked(4.0, gpus_per_worker=2.0)) == (0.2, 2.0)
    # None spans two GPUs: of 0.66 each, 4 GPUs would take 4 workers.
    assert (asked(4.0, workers=6), asked(8.0, workers=12), asked(4.0, workers=9)) == (0.5, 0.5, 0.33)
    with pytest.raises(ValueError, match="no GPU"):
        asked(0.0, use_gpu=True)
    with pytest.raises(ValueError, match=r"gpus_per_worker=2\.0 is more than the 1"):
        asked(1.0, gpus_per_worker=2.0)


def test_bad_settings_are_named():
    for change, name in (
        ({"score_threshold": 1.0}, "score_threshold=1.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"task_images": 0}, "task_images=0"),
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"tile": 0}, "tile=0"),
        ({"tile_overlap": 0.95}, "tile_overlap=0.95"),
        ({"near_duplicate_bits": 11}, "near_duplicate_bits=11"),
        ({"scales": ()}, "scales="),
        ({"scales": (1.0, 1.0)}, "scales="),
        ({"class_thresholds": {"dog": 1.0}}, "class_thresholds of 'dog'"),
        ({"workers": 2, "min_workers": 3}, "min_workers=3"),
        ({"gpus_per_worker": 0.0}, "gpus_per_worker=0.0"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker=1.5"),
        ({"max_dead_share": 1.1}, "max_dead_share=1.1"),
        ({"price_per_hour": -1.0}, "price_per_hour=-1.0"),
        ({"precision": "int8"}, "int8"),
    ):
        with pytest.raises(ValueError, match=name):
            replace(CONFIG, **change)


def test_config_survives_json():
    config = replace(CONFIG, splits=("val",))
    assert LabelConfig.from_json({**config.to_json(), "splits": ["val"]}) == config
