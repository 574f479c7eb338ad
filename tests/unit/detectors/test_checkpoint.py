"""Models on disk: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detectors import create, load, save
from detectors.base import Detector
from detectors.description import DESCRIPTION, WEIGHTS, BadCheckpoint, NewerCheckpoint
from detectors.structures import Batch

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return create("retinanet_lite0", num_classes=2, image_size=96, prior=0.3, head_depth=1)


@pytest.fixture
def saved(detector: Detector, tmp_path: Path) -> Path:
    save(detector, detector.spec, tmp_path, categories=CATEGORIES, provenance={"epochs": 3})
    return tmp_path


def test_round_trip(detector: Detector, tmp_path: Path) -> None:
    digest = save(detector, None, tmp_path, categories=CATEGORIES, provenance={"epochs": 3})
    model = load(tmp_path)
    assert (model.digest, model.spec, model.categories) == (digest, detector.spec, CATEGORIES)
    assert model.provenance["epochs"] == 3
    assert model.detector.preprocessing == detector.preprocessing and model.detector.preprocessing.size == 96
    assert not model.detector.training
    batch = Batch(
        images=torch.randn(1, 3, 96, 96), sizes=torch.tensor([[96, 96]]), original_sizes=torch.tensor([[200, 200]])
    )
    (ours,), (theirs,) = detector.eval().predict(batch), model.detector.predict(batch)
    assert len(ours) > 0 and torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.scores, theirs.scores)
    assert sorted(p.name for p in tmp_path.iterdir()) == [DESCRIPTION, WEIGHTS]


def test_the_digest_is_that_of_the_content(detector: Detector, tmp_path: Path) -> None:
    first = save(detector, None, tmp_path / "a", categories=CATEGORIES, provenance={})
    assert save(detector, None, tmp_path / "b", categories=CATEGORIES, provenance={}) == first
    assert save(detector, None, tmp_path / "b", categories=CATEGORIES, provenance={"seed": 1}) != first


def test_altered_weights_are_refused(saved: Path) -> None:
    weights = saved / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors is not the file"):
        load(saved)


def test_an_altered_description_is_refused(saved: Path) -> None:
    path = saved / DESCRIPTION
    path.write_text(path.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(BadCheckpoint, match=r"model\.json was altered"):
        load(saved)


def test_a_newer_schema_is_refused(saved: Path) -> None:
    path = saved / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(NewerCheckpoint, match=r"schema version 99, this boxmill reads up to 1"):
        load(saved)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(BadCheckpoint, match=f"{name} is missing"):
        load(saved)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema_version": 1}', '{"schema_version": "x"}'])
def test_a_broken_description_is_named(saved: Path, content: str) -> None:
    (saved / DESCRIPTION).write_text(content)
    with pytest.raises(BadCheckpoint, match=r"model\.json"):
        load(saved)


def test_each_class_needs_its_category(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 categories for a detector of 2 classes"):
        save(detector, None, tmp_path, categories=CATEGORIES[:1])
