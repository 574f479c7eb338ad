"""How a training run writes its model, and how the model is found again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detectors import Detector, save
from pipelines.storage import redact
from workers.models import describe_model, put_model
from workers.software import software_versions
from workers.train_config import ModelRef, TrainJob
from workers.validation import metric_names

_ADDRESSES = ("dataset", "out", "init_from", "pretrained", "pretrained_backbone")
_PACKAGES = ("boxmill", "torch", "torchvision", "timm", "ray", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A model that a training run has written, and which run that was."""

    model: ModelRef
    job_digest: str


def save_trained(detector: Detector, job: TrainJob, history: Sequence[dict[str, Any]]) -> str:
    """Writes the model of a finished run to ``job.config.out``; returns its digest."""
    validated = [entry for entry in history if "AP" in entry]
    provenance = {
        "job_digest": job.digest,
        "dataset": {"reference": redact(job.reference), "digest": job.dataset_digest},
        "config": {k: redact(v) if k in _ADDRESSES and v else v for k, v in job.config.to_json().items()},
        "loaded_weights": job.loaded_weights,
        "metrics": {name: validated[-1][name] for name in metric_names() if validated and name in validated[-1]},
        "history": list(history),
        "seconds": round(sum(entry["seconds"] for entry in history), 3),
        "versions": software_versions(*_PACKAGES),
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with tempfile.TemporaryDirectory() as folder:
        digest = save(detector, None, Path(folder), categories=job.categories, provenance=provenance)
        put_model(Path(folder), job.config.out)
    return digest


def read_trained(uri: str) -> TrainedModel | None:
    """The model that a training run wrote to ``uri``; None where there is none."""
    described = describe_model(uri)
    if described is None:
        return None
    provenance = described["provenance"]
    model = ModelRef(
        uri=uri,
        digest=str(described["digest"]),
        metrics=dict(provenance.get("metrics", {})),
        history=tuple(provenance.get("history", ())),
        seconds=float(provenance.get("seconds", 0.0)),
        loaded_weights=provenance.get("loaded_weights"),
    )
    return TrainedModel(model=model, job_digest=str(provenance.get("job_digest", "")))
