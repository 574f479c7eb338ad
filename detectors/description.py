"""What a model says of itself in ``model.json``, read without torch: it takes seconds and half a gigabyte to import."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


class BadCheckpoint(ValueError):
    """A model directory is broken, incomplete, or not what its digest says."""


class NewerCheckpoint(BadCheckpoint):
    """A model was written by a newer boxmill."""


def read_description(directory: Path) -> dict[str, Any]:
    """``model.json``, checked against its own digest; the weights are not looked at.

    Raises:
        BadCheckpoint, NewerCheckpoint: as ``load``.
    """
    path = Path(directory) / DESCRIPTION
    if not path.is_file():
        raise BadCheckpoint(f"{path} is missing; {directory} is no model, or was cut short while written")
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(description["schema_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path} is no model description: {error}") from error
    if version > SCHEMA_VERSION:
        raise NewerCheckpoint(
            f"{path} has schema version {version}, this boxmill reads up to {SCHEMA_VERSION}; upgrade boxmill"
        )
    lacking = {"spec", "categories", "preprocessing", "provenance", "files", "digest"} - description.keys()
    if lacking or WEIGHTS not in description["files"]:
        raise BadCheckpoint(f"{path} lacks {', '.join(sorted(lacking)) or WEIGHTS}")
    if description["digest"] != description_digest(description):
        raise BadCheckpoint(f"{path} was altered after it was written (digest differs)")
    return description


def description_digest(description: Mapping[str, Any]) -> str:
    """Over all but the digest itself; the weights take part through their own sha256."""
    content = {key: value for key, value in description.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
