"""A model on disk: ``model.safetensors`` and ``model.json``, told apart from any other by one digest.

Only tensors and JSON are ever read, so a model from a stranger cannot run code (unless its spec names a factory
that is installed here).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from detectors.base import Detector, DetectorSpec, Preprocessing
from detectors.catalog import create
from detectors.description import (
    DESCRIPTION,
    SCHEMA_VERSION,
    WEIGHTS,
    BadCheckpoint,
    description_digest,
    read_description,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model as it was saved.

    Attributes:
        detector: in eval mode, on the CPU.
        spec: that rebuilds it.
        categories: as ``LabelMap.to_json`` gave them; label i is the i-th.
        provenance: what the trainer wrote.
        digest: sha256, hex, of the whole model.
    """

    detector: Detector
    spec: DetectorSpec
    categories: list[dict[str, Any]]
    provenance: dict[str, Any]
    digest: str


def save(
    detector: Detector,
    spec: DetectorSpec | None,
    directory: Path,
    *,
    categories: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Writes a model.

    The description is written last and names the digest of the weights, so a directory that was cut short is
    refused by ``load``, never half a model.

    Args:
        detector: whose weights are saved (as float32 or whatever they are).
        spec: that rebuilds it; None is ``detector.spec``.
        directory: made where missing; an older model in it is replaced.
        categories: one an label, as ``LabelMap.to_json`` gives them.
        provenance: JSON-ready; what made the model.
    Returns:
        The model's digest: sha256, hex, over weights and description.
    Raises:
        ValueError: as many categories as classes are needed.
    """
    spec = detector.spec if spec is None else spec
    if len(categories) != spec.num_classes:
        raise ValueError(f"{len(categories)} categories for a detector of {spec.num_classes} classes")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / WEIGHTS
    tensors = {key: value.detach().cpu().contiguous() for key, value in detector.state_dict().items()}
    partial = weights.with_suffix(".partial")
    save_file(tensors, partial)
    (directory / DESCRIPTION).unlink(missing_ok=True)
    partial.replace(weights)
    description = {
        "schema_version": SCHEMA_VERSION,
        "spec": spec.to_json(),
        "categories": [dict(c) for c in categories],
        "preprocessing": detector.preprocessing.to_json(),
        "provenance": {"loaded_weights": summarise_report(detector.loaded_weights), **(provenance or {})},
        "files": {WEIGHTS: _sha256(weights)},
    }
    description["digest"] = description_digest(description)
    partial = directory / f"{DESCRIPTION}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(description, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(directory / DESCRIPTION)
    return str(description["digest"])


def load(directory: Path) -> LoadedModel:
    """Reads a model and checks it against its digests.

    Raises:
        BadCheckpoint: a file is missing, broken or altered; the message names it.
        NewerCheckpoint: the model needs a newer boxmill.
        ValueError: the spec's detector is unknown here.
    """
    directory = Path(directory)
    description = read_description(directory)
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise BadCheckpoint(f"{weights} is missing; copy the whole model directory")
    if _sha256(weights) != description["files"][WEIGHTS]:
        raise BadCheckpoint(f"{weights} is not the file that {DESCRIPTION} describes (sha256 differs); copy it again")
    spec = DetectorSpec.from_json(description["spec"])
    detector = create(spec)
    try:
        detector.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise BadCheckpoint(f"{weights} does not fit {spec.name} as {DESCRIPTION} specifies it: {error}") from error
    detector.preprocessing = Preprocessing.from_json(description["preprocessing"])
    return LoadedModel(
        detector=detector.eval(),
        spec=spec,
        categories=list(description["categories"]),
        provenance=dict(description["provenance"]),
        digest=str(description["digest"]),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summarise_report(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A ``LoadReport`` as a model keeps it.

    Args:
        report: as a dict.
    Returns:
        ``source``, ``sha256``, ``checked`` and ``key_map``; how many tensors were ``loaded``, ``left_out`` of the
        file and ``untouched`` here, with the names of the latter two; ``classes_copied`` and ``classes_new``. No path
        of this machine.
    """
    if report is None:
        return None
    source = str(report["source"])
    return {
        "source": Path(source).name if Path(source).is_absolute() else source,
        **{key: report[key] for key in ("sha256", "checked", "key_map")},
        **{key: len(report[key]) for key in ("loaded", "left_out", "untouched")},
        **{f"{key}_names": list(report[key]) for key in ("left_out", "untouched")},
        **{key: list(report[key]) for key in ("classes_copied", "classes_new")},
    }


def describe_report(summary: Mapping[str, Any]) -> str:
    """One line for people of what ``summarise_report`` gave."""
    parts = [f"weights {summary['source']}: {summary['loaded']} tensors loaded"]
    for key, what in (("untouched", "here start at random"), ("left_out", "of the file were left out")):
        if summary[key]:
            parts.append(f"{summary[key]} {what} ({_some(summary[f'{key}_names'])})")
    if summary["classes_copied"] or summary["classes_new"]:
        new = summary["classes_new"]
        text = f"{len(summary['classes_copied'])} classes copied"
        parts.append(f"{text}, {len(new)} new ({_some(new)})" if new else text)
    if not summary["checked"]:
        parts.append(f"sha256 {summary['sha256']}, which nobody gave to compare with")
    return "; ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
