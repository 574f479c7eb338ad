"""Released weights as a model that labels and is evaluated like a trained one, without a training step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import detectors
from detectors.catalog import find_entry
from detectors.coco_categories import COCO_CATEGORIES, COCO_KEYPOINT_CATEGORIES, coco_rows
from detectors.loading import KEY_MAPS, load_weights
from detectors.weights import KnownWeights, find_by_digest, find_weights, is_known_name
from pipelines.records import LabelMap
from pipelines.storage import absolute, read_uri, redact
from workers.initial_weights import backbone_of
from workers.models import file_digest, put_model
from workers.saved_model import read_trained
from workers.software import software_versions
from workers.train_config import ModelRef
from workers.weight_files import fetch_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Weights to be made a model.

    Attributes:
        detector: a name of ``detectors.list_detectors()``.
        out: directory of the model, any fsspec URL.
        weights: see ``workers.weight_files.fetch_weights``.
        categories: ``coco``, or the URI of a JSON file: a list of names, or of objects with ``id`` and ``name``, or a
            COCO file, in the order of the weights' classes; None where known weights say it.
        detector_options: over those that known weights were trained with.
        overwrite: replace another model in ``out``.
    """

    detector: str
    out: str
    weights: str = "coco"
    categories: str | None = None
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False


def import_model(config: ImportConfig) -> ModelRef:
    """Writes a model out of released weights; where it is there already, it is found.

    Raises:
        ValueError: the weights are not all that the detector needs, nobody says what their classes are, or ``out``
            holds another model.
    """
    backbone = backbone_of(config.detector, config.detector_options)
    path = fetch_weights(config.weights, config.detector, backbone)
    if path is None:
        raise ValueError("there is nothing to import without weights; give coco, a path, URL or hub id")
    digest = file_digest(path)
    known = (
        find_weights(config.weights, config.detector, backbone)
        if is_known_name(config.weights)
        else find_by_digest(digest)
    )
    label_map = _label_map(config, known)
    options = {**(known.options if known else {}), **config.detector_options}
    detector = detectors.create(config.detector, num_classes=len(label_map), **options)
    report = load_weights(
        detector,
        path,
        classes=label_map.names,
        rows=None if known is not None and config.categories is None else lambda n: _rows(n, label_map, config, path),
    )
    if report.key_map not in {*KEY_MAPS, "boxmill"} or report.untouched or report.classes_new:
        lacking = [*report.untouched, *report.classes_new]
        raise ValueError(
            f"{redact(config.weights)} is not all of {config.detector}: "
            + (f"it lacks {', '.join(lacking[:5])}" if lacking else "it is a backbone alone")
            + "; train with pretrained= to start from it"
        )
    report = replace(report, source=redact(config.weights))
    detector.loaded_weights = asdict(report)
    return _write(config, detector, label_map)


def _write(config: ImportConfig, detector: detectors.Detector, label_map: LabelMap) -> ModelRef:
    out = absolute(config.out)
    there = read_trained(out)
    # No date is in it, so that the same import makes the same model and finds it.
    provenance = {
        "imported": {"weights": redact(config.weights), "categories": config.categories},
        "versions": software_versions("boxmill", "torch", "timm"),
    }
    with tempfile.TemporaryDirectory() as folder:
        digest = detectors.save(detector, None, Path(folder), categories=label_map.to_json(), provenance=provenance)
        if there is not None and there.model.digest == digest:
            return there.model
        if there is not None and not config.overwrite:
            raise ValueError(f"{redact(out)} holds another model; give another out, or set overwrite")
        put_model(Path(folder), out)
    written = read_trained(out)
    assert written is not None and written.model.digest == digest
    return written.model


def _label_map(config: ImportConfig, known: KnownWeights | None) -> LabelMap:
    """The categories of the model.

    Raises:
        ValueError: nobody says what they are.
    """
    if config.categories == "coco" or (config.categories is None and known is not None and known.trained_on == "coco"):
        with_keypoints = hasattr(find_entry(config.detector).options, "num_keypoints")
        return LabelMap.from_json(COCO_KEYPOINT_CATEGORIES if with_keypoints else COCO_CATEGORIES)
    if config.categories is None:
        raise ValueError(
            f"{redact(config.weights)} does not say what its classes are; give categories: coco, or a JSON file of "
            "their names in order"
        )
    return LabelMap.from_json(_read_categories(config.categories))


def _read_categories(uri: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(read_uri(uri))
        found = found["categories"] if isinstance(found, dict) else found
        return [{"id": i, "name": c} if isinstance(c, str) else {**c, "id": int(c["id"])} for i, c in enumerate(found)]
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of categories at {redact(uri)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{redact(uri)} holds no categories ({error}); write a JSON list of names, or of objects with id and name"
        ) from error


def _rows(count: int, label_map: LabelMap, config: ImportConfig, path: Path) -> Sequence[str | None]:
    """Names of the ``count`` classes of weights that nobody knows.

    Raises:
        ValueError: their number does not fit the categories.
    """
    names = label_map.names
    if count == len(names):
        return names
    if count == len(names) + 1:
        return (None, *names)  # a class for the background, as torchvision's trainers count
    if config.categories == "coco" and count in (90, 91):
        return coco_rows(first=91 - count)
    raise ValueError(
        f"{path} has {count} classes, where categories {config.categories} names {len(names)}; give all names in the "
        "order of the weights' classes"
    )
