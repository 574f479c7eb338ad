"""Model directories, brought from any URL to a local path."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from pipelines.storage import Store, absolute, redact

MODEL_FILES = ("model.safetensors", "model.json")


def cache_folder() -> Path:
    """Where fetched models and weights stay: ``BOXMILL_CACHE``, or ``boxmill`` in the user's cache folder."""
    chosen = os.environ.get("BOXMILL_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boxmill"


def fetch_model(uri: str) -> Path:
    """A model directory as a local one, fetched once for each content.

    Args:
        uri: a model directory on any fsspec URL; a local one is used where it lies.
    Raises:
        FileNotFoundError: there is no model.
        ValueError: the scheme is unknown.
    """
    store = Store.open(uri)
    if store.is_local:
        missing = [name for name in MODEL_FILES if not store.exists(name)]
        if missing:
            raise FileNotFoundError(_no_model(uri, missing[0]))
        return Path(store.root)
    try:
        described = store.read_bytes("model.json")
        # model.json holds the digest of the weights, so its own digest names the whole content.
        folder = cache_folder() / "models" / hashlib.sha256(described).hexdigest()[:32]
        if not (folder / "model.json").exists():
            weights = store.read_bytes("model.safetensors")
            _place(folder, {"model.safetensors": weights, "model.json": described})
    except FileNotFoundError as error:
        raise FileNotFoundError(_no_model(uri, str(error))) from error
    return folder


def put_model(folder: Path, uri: str) -> None:
    """Copies a model directory to any URL; ``model.json`` comes last, as it makes the model one."""
    store = Store.open(uri)
    for name in MODEL_FILES:
        store.upload(folder / name, name)


def describe_model(uri: str) -> dict[str, Any] | None:
    """The ``model.json`` of a model, None where there is none."""
    try:
        described: dict[str, Any] = json.loads(Store.open(uri).read_bytes("model.json"))
    except FileNotFoundError:
        return None
    return described


def file_digest(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _place(folder: Path, files: dict[str, bytes]) -> None:
    """Several processes may fetch at once: each fills a folder of its own, and one of them becomes the folder."""
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    for name, content in files.items():
        (temporary / name).write_bytes(content)
    try:
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary)


def _no_model(uri: str, lacking: str) -> str:
    return f"there is no model at {redact(absolute(uri))} ({lacking} is missing); give the directory that train wrote"
