"""Models from any URL."""

import json

import fsspec
import pytest

import detectors
from workers import models
from workers.models import fetch_model, put_model

CATEGORIES = [{"id": 5, "name": "cell"}]


@pytest.fixture
def model(tmp_path):
    detector = detectors.create(
        "retinanet_lite0", num_classes=1, image_size=64, fpn_channels=8, head_channels=8, head_depth=1
    )
    folder = tmp_path / "model"
    digest = detectors.save(detector, None, folder, categories=CATEGORIES)
    return folder, digest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BOXMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_local_model_is_used_where_it_lies(model):
    folder, _ = model
    assert fetch_model(str(folder)) == folder


def test_a_remote_model_is_fetched_once_and_anew_when_it_changes(model, cache):
    folder, digest = model
    uri = "memory://models/first"
    put_model(folder, uri)
    fetched = fetch_model(uri)
    assert detectors.load(fetched).digest == digest
    fsspec.filesystem("memory").rm("/models/first/model.safetensors")
    assert fetch_model(uri) == fetched, "the weights are not read again"

    other = detectors.load(folder).detector
    changed = detectors.save(other, None, folder, categories=[{"id": 6, "name": "cell"}])
    put_model(folder, uri)
    assert detectors.load(fetch_model(uri)).digest == changed != digest
    assert len(list((cache / "models").iterdir())) == 2


def test_a_failed_fetch_leaves_nothing_that_looks_like_a_model(model, cache):
    folder, _ = model
    put_model(folder, "memory://models/half")
    fsspec.filesystem("memory").rm("/models/half/model.safetensors")
    with pytest.raises(FileNotFoundError, match="no model at memory://models/half"):
        fetch_model("memory://models/half")
    assert not list(cache.rglob("model.json"))


@pytest.mark.parametrize("uri", ["/nowhere/at/all", "memory://models/none"])
def test_no_model_is_an_error_that_says_what_to_give(uri):
    with pytest.raises(FileNotFoundError, match="give the directory that train wrote"):
        fetch_model(uri)


def test_the_description_is_written_last(model, monkeypatch):
    folder, _ = model
    written = []
    monkeypatch.setattr(models.Store, "upload", lambda self, local, path: written.append(path))
    put_model(folder, "memory://models/order")
    assert written == ["model.safetensors", "model.json"]
    assert json.loads((folder / "model.json").read_text())["digest"]
