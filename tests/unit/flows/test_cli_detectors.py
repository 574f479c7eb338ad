"""``boxmill detectors``: quick lists for people and scripts, and every option of one."""

from __future__ import annotations

import json
import subprocess
import sys

from flows.cli import app


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    code = app.run(arguments)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_the_list_needs_no_torch():
    code = (
        "import sys; from flows.cli import main\n"
        "try: main(['detectors', '--json'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    listed, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    found = json.loads(listed)["detectors"]["retinanet_r50_fpn"]
    assert (found["task"], found["backbone"], found["image_size"]) == ("boxes", "resnet50", 640)
    assert 38.1e6 < found["parameters"] < 38.2e6 and 97e9 < found["multiply_adds"] < 98e9
    assert [w["name"] for w in found["weights"]] == ["retinanet_r50_fpn_coco", "resnet50_imagenet"]
    assert found["weights"][0]["sha256"] == "eeacb38b" and found["weights"][0]["licence"] == "BSD-3-Clause"


def test_a_part_of_names_chooses(capfd):
    code, out, _ = run(capfd, "detectors", "yolo_v3", "--json")
    assert code == 0 and list(json.loads(out)["detectors"]) == ["yolo_v3_darknet53", "yolo_v3_tiny"]
    code, out, err = run(capfd, "detectors", "yolo_v3")
    assert "62.0 M" in out and "33.0 G" in out and "counted with 90 classes" in err


def test_a_name_tells_every_option(capfd):
    code, out, _ = run(capfd, "detectors", "efficientdet_d0", "--json")
    options = {option["option"]: option for option in json.loads(out)["options"]}
    assert options["fusion"]["type"] == "fast | softmax | sum" and options["fusion"]["default"] == "fast"
    assert options["mean"]["type"] == "tuple of float" and options["image_size"]["default"] == 512
    assert [name for name, option in options.items() if not option["text"]] == []
    code, out, _ = run(capfd, "detectors", "efficientdet_d0")
    assert code == 0 and "longer side, pixels." in out and "tf_efficientdet_d0_34-f153e0cf.pth" in out


def test_every_option_of_every_detector_is_described():
    from detectors import list_detectors
    from flows.cli.models import _options

    assert [(name, o["option"]) for name in list_detectors() for o in _options(name) if not o["text"]] == []


def test_an_unknown_name_is_told_with_near_ones(capfd):
    code, out, err = run(capfd, "detectors", "retinanet_r50x")
    assert code == 3 and out == "" and "did you mean retinanet_r50_fpn" in err
