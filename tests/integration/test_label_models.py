"""Several models over one read of the images: what each would have found alone, and images read once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines import open_dataset
from pipelines.jobs import Job
from tests.integration.labelling import THRESHOLD, make_model, rows_by_image
from tests.integration.training import make_dataset
from workers.label import LabelConfig, label, label_each

pytestmark = pytest.mark.ray
IMAGES, TASKS = 16, 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label")
    make_dataset(str(folder / "scenes"), num_train=12, num_val=4)
    return folder / "scenes"


@pytest.fixture(scope="module")
def models(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder, label_map = tmp_path_factory.mktemp("models"), open_dataset(str(scenes)).label_map
    return make_model(folder / "a", label_map, seed=0), make_model(folder / "b", label_map, seed=1, image_size=96)


def config_for(dataset: Path, **changes: object) -> LabelConfig:
    settings = {"score_threshold": THRESHOLD, "task_images": IMAGES // TASKS, "workers": 1}
    return LabelConfig(**{"input": str(dataset), "model": "", **settings, **changes})


def test_each_finds_what_it_finds_alone_and_images_are_read_once(scenes, models, tmp_path, ray_cluster):
    together, alone = (Path(shutil.copytree(scenes, tmp_path / name)) for name in ("together", "alone"))
    seen = []
    first, second = label_each(config_for(together), models, lambda *told, **_: seen.append(told))
    expected = [label(config_for(alone, model=model)) for model in models]
    for made, one in zip((first, second), expected, strict=True):
        assert made.num_images == IMAGES and not made.found and made.tasks == TASKS
        assert rows_by_image(made.reference) == rows_by_image(one.reference)
        assert made.digest == one.digest and made.reference.split("@")[1] == one.reference.split("@")[1]
        assert made.account["bytes_written"] > 0 and made.account["stage_seconds"]["model"] > 0
        assert made.account["run"]["models"] == 2 and made.account["run"]["images"] == IMAGES
    assert rows_by_image(first.reference) != rows_by_image(second.reference)
    assert first.account["bytes_read"] == expected[0].account["bytes_read"] > 0
    assert second.account["bytes_read"] == 0 == second.account["stage_seconds"]["decode"]
    assert seen[-1] == ("label", IMAGES, IMAGES)
    again = label_each(config_for(together), models)
    assert [made.found for made in again] == [True, True]
    assert [made.reference for made in again] == [first.reference, second.reference]


def test_each_goes_on_where_it_stopped(scenes, models, tmp_path, ray_cluster):
    """One model lacks two tasks, the other one of them; what is there is kept."""
    dataset = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    made = label_each(config_for(dataset), models)
    expected = [rows_by_image(one.reference) for one in made]
    kept = []
    for lost, one in zip(((0, 1), (1,)), made, strict=True):
        # As if the commit had not come to pass, and the receipts of these tasks neither.
        shutil.rmtree(dataset / one.reference.partition("@")[2].partition(":")[0] / "_delta_log")
        job = Job(str(dataset), one.account["plan_id"])
        for task in lost:
            (dataset / f"_jobs/{job.plan_id}/done/{task:06d}.json").unlink()
        kept += [(job, task, job.receipt(task)) for task in job.done()]
    assert len(kept) == 2 * TASKS - 3
    resumed = label_each(config_for(dataset), models)
    assert [one.resumed for one in resumed] == [TASKS - 2, TASKS - 1]
    assert [rows_by_image(one.reference) for one in resumed] == expected
    assert [job.receipt(task) for job, task, _ in kept] == [receipt for _, _, receipt in kept]


def test_an_archive_has_a_set_of_each_model_and_bad_images_are_bad_for_all(models, tmp_path, ray_cluster):
    from tests.making import encoded

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(encoded(60 + number, 40))
    (folder / "5.jpg").write_bytes(encoded(60, 40)[:-30])
    made = label_each(config_for(folder, out=str(tmp_path / "out")), models)
    assert len({one.reference for one in made}) == 2
    for one in made:
        rows = rows_by_image(one.reference)
        assert [row[0] for row in rows] == [f"{number}.jpg" for number in range(6)]
        assert [row[3] for row in rows] == ["ok"] * 5 + ["failed"] and one.num_quarantined == 1


def test_sets_of_a_dataset_are_told_apart_and_one_model_is_given_once(scenes, models, tmp_path, ray_cluster):
    dataset = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    made = label_each(config_for(dataset, out="mine", splits=("val",)), models)
    digests = [one.reference.partition("labels/mine-")[2].partition(":")[0] for one in made]
    assert len(set(digests)) == 2 and all(len(digest) == 8 for digest in digests)
    with pytest.raises(ValueError, match="the same model"):
        label_each(config_for(dataset), (models[0], models[0]))
    with pytest.raises(ValueError, match="export coco"):
        label_each(config_for(dataset, coco_results=str(tmp_path / "r.json")), models)
    with pytest.raises(ValueError, match="no model was given"):
        label_each(config_for(dataset), ())
