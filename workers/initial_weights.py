"""What a training run starts from: which weights, what they ask of the detector, and their way into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import detectors
from detectors import Detector, LoadedModel
from detectors.catalog import find_entry
from detectors.keymaps import LoadReport
from detectors.loading import load_state, load_weights
from detectors.weights import find_by_digest
from pipelines.records import LabelMap
from pipelines.storage import absolute, redact
from workers.models import fetch_model, file_digest
from workers.train_config import TrainConfig
from workers.weight_files import fetch_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The weights of a run, on this machine.

    Attributes:
        model: of ``init_from``.
        weights: file of ``pretrained`` or ``pretrained_backbone``.
        whole: the file is a whole detector's, as far as the user says.
        address: where they are from, without secrets.
        options: of the detector that these weights were trained with.
        digests: of what the run starts from, by kind; they are part of its name.
    """

    model: LoadedModel | None = None
    weights: Path | None = None
    whole: bool = False
    address: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def find_start(config: TrainConfig) -> Start:
    """Brings the weights that a run starts from to this machine.

    Raises:
        ValueError, FileNotFoundError: see ``workers.weight_files`` and ``workers.models.fetch_model``.
    """
    if config.init_from is not None:
        model = detectors.load(fetch_model(config.init_from))
        return Start(
            model=model,
            address=redact(absolute(config.init_from)),
            options=model.spec.options,
            digests={"init_from": model.digest},
        )
    weights = config.pretrained_backbone if config.pretrained is None else config.pretrained
    path = fetch_weights(weights, config.detector, backbone_of(config.detector, config.detector_options))
    digest = "" if path is None else file_digest(path)
    known = None if config.pretrained is None else find_by_digest(digest)
    return Start(
        weights=path,
        whole=config.pretrained is not None,
        address="" if weights is None else redact(weights),
        # The input's size is the run's own, whatever the weights were trained at.
        options={} if known is None else {k: v for k, v in known.options.items() if k != "image_size"},
        digests={"backbone" if config.pretrained is None else "pretrained": digest},
    )


def backbone_of(detector: str, options: Mapping[str, Any]) -> str | None:
    """Name of the backbone that a detector has with these options; None where it is a user's own or has no choice.

    Raises:
        UnknownDetector: no such name.
    """
    defaults = None if ":" in detector else find_entry(detector).options
    return options.get("backbone", getattr(defaults, "backbone", None))


def order_of_classes(start: Start, label_map: LabelMap) -> LabelMap:
    """The dataset's categories in the order of the classes of the model that a run goes on from, if they are equal."""
    if start.model is None:
        return label_map
    by_name = {category.name: category for category in label_map.categories}
    names = [str(category["name"]) for category in start.model.categories]
    if sorted(names) != sorted(by_name):
        return label_map
    return LabelMap(categories=tuple(by_name[name] for name in names))


def load_start(detector: Detector, start: Start, classes: Sequence[str]) -> LoadReport | None:
    """Puts the weights into the detector, notes them in ``loaded_weights``, and says what was and was not loaded.

    Args:
        detector: with random weights.
        start: None of its weights are needed for ``detector`` to stay as it is; then the report is None.
        classes: names of the detector's labels, in order.
    Raises:
        ValueError: the weights are another network's.
    """
    if start.model is not None:
        report = load_state(
            detector,
            start.model.detector.state_dict(),
            source_classes=[str(category["name"]) for category in start.model.categories],
            classes=classes,
        )
        report = replace(report, sha256=start.model.digest, key_map="boxmill", checked=True)
    elif start.weights is not None:
        report = load_weights(detector, start.weights, classes=classes, backbone_alone=not start.whole)
    else:
        return None
    report = replace(report, source=start.address)
    detector.loaded_weights = asdict(report)
    return report
