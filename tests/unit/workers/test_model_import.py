"""Released weights as a model: what it predicts is what their own network predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection import retinanet_resnet50_fpn

import detectors
from detectors.batching import make_batch
from flows.cli import app
from workers.model_import import ImportConfig, import_model

# Where torchvision differs from the paper; both see the image at its own size.
AS_TORCHVISION = {"p6_source": "p5", "box_loss": "l1", "anchor_style": "torchvision"}
HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """torchvision's RetinaNet with COCO's 91 classes, so sure of itself that there is something to compare."""
    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, min_size=HEIGHT, max_size=WIDTH).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.fill_(0.3 if name.endswith("bn3") else 1.0)
    for head in (model.head.classification_head, model.head.regression_head):
        for module in head.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=0.03)
    torch.nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.005)
    torch.nn.init.constant_(model.head.classification_head.cls_logits.bias, -3.0)
    path = tmp_path_factory.mktemp("weights") / "retinanet.pth"
    torch.save(model.state_dict(), path)
    return model, path


def test_an_imported_retinanet_finds_what_torchvisions_finds(theirs, tmp_path: Path, capfd) -> None:
    model, path = theirs
    out = tmp_path / "model"
    settings = [f"{key}={value}" for key, value in {**AS_TORCHVISION, "image_size": WIDTH}.items()]
    arguments = ["models", "import", "retinanet_r50_fpn", "--weights", str(path), "--categories", "coco"]
    arguments += ["--out", str(out), *(part for setting in settings for part in ("--set", setting)), "--json"]
    assert app.run(arguments) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["loaded_weights"]["key_map"] == "torchvision_retinanet"
    assert printed["loaded_weights"]["source"] == "retinanet.pth" and printed["loaded_weights"]["untouched"] == 0

    loaded = detectors.load(out)
    assert loaded.digest == printed["digest"] and len(loaded.categories) == 80
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    with torch.no_grad():
        (expected,) = model([image / 255])
    (found,) = loaded.detector.predict(make_batch([image], loaded.detector.preprocessing))
    ids = torch.tensor([category["id"] for category in loaded.categories])
    used = torch.isin(expected["labels"], ids)  # of their 91 classes, eleven are none of COCO's
    assert used.sum() >= 50
    ours = sorted(zip(ids[found.labels].tolist(), found.scores.tolist(), found.boxes.tolist()))
    others = sorted(zip(*(expected[key][used].tolist() for key in ("labels", "scores", "boxes"))))
    # Both stop at 300; theirs count the boxes of unused classes too, so that ours go on to less sure ones.
    least = min(score for _, score, _ in others)
    ours = [one for one in ours if one[1] >= least - 1e-6]
    assert [label for label, _, _ in ours] == [label for label, _, _ in others]
    for (_, score, box), (_, their_score, their_box) in zip(ours, others):
        assert score == pytest.approx(their_score, abs=1e-5) and box == pytest.approx(their_box, abs=1e-3)

    assert app.run(arguments) == 0, "the same import finds its model"
    assert json.loads(capfd.readouterr().out)["digest"] == printed["digest"]
    assert app.run([*arguments, "--set", "nms_iou=0.6"]) == 3
    assert "holds another model" in json.loads(capfd.readouterr().out)["error"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = detectors.create("retinanet_r18_fpn", num_classes=3, **SMALL)
    path = tmp_path_factory.mktemp("own") / "weights.pth"
    torch.save(detector.state_dict(), path)
    return path


SMALL = {"image_size": 64, "fpn_channels": 16, "head_channels": 16, "head_depth": 1}


def config(own: Path, tmp_path: Path, **changes) -> ImportConfig:
    given = {
        "detector": "retinanet_r18_fpn",
        "out": str(tmp_path / "m"),
        "weights": str(own),
        "detector_options": SMALL,
    }
    return ImportConfig(**(given | changes))


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (["a", "b"], ["a", "b"]),  # the weights' first class is the background
        ({"categories": [{"id": 7, "name": "x"}, {"id": 3, "name": "y"}, {"id": 4, "name": "z"}]}, ["x", "y", "z"]),
    ],
)
def test_categories_from_a_file(own: Path, tmp_path: Path, content: object, names: list[str]) -> None:
    model = import_model(config(own, tmp_path, categories=write(tmp_path / "categories.json", content)))
    loaded = detectors.load(Path(model.uri))
    assert [category["name"] for category in loaded.categories] == names
    assert model.loaded_weights["classes_copied"] == names and model.history == ()
    theirs = torch.load(own, weights_only=True)["head.class_logits.bias"].view(9, 3)
    assert torch.equal(loaded.detector.head.class_logits.bias.view(9, len(names)), theirs[:, 3 - len(names) :])


def test_what_cannot_become_a_model_is_told(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not say what its classes are; give categories: coco, or a JSON file"):
        import_model(config(own, tmp_path))
    with pytest.raises(ValueError, match=r"has 3 classes, where categories .*few\.json names 1; give all names"):
        import_model(config(own, tmp_path, categories=write(tmp_path / "few.json", ["a"])))
    with pytest.raises(ValueError, match=r"bad\.json holds no categories"):
        import_model(config(own, tmp_path, categories=write(tmp_path / "bad.json", [1])))
    with pytest.raises(FileNotFoundError, match=r"no file of categories at .*none\.json"):
        import_model(config(own, tmp_path, categories=str(tmp_path / "none.json")))
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="it is a backbone alone; train with pretrained"):
        import_model(config(tmp_path / "resnet18.pth", tmp_path, categories=write(tmp_path / "c.json", ["a"])))
    names = write(tmp_path / "abc.json", ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"is not all of retinanet_r18_fpn: it lacks head\.\S+.*train with pretrained"):
        import_model(config(own, tmp_path, categories=names, detector_options={**SMALL, "head_channels": 32}))
    assert not (tmp_path / "m").exists()
