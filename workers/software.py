"""Which versions of which libraries made a result, for its provenance."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def software_versions(*packages: str) -> dict[str, str]:
    """Python's version and those of some packages; empty for one that is not installed as a package.

    On a cluster that got the code as a job's working directory, boxmill itself is such a one.
    """
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
