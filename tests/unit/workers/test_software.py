"""Versions for the provenance of a result."""

import platform
from importlib.metadata import version

from workers.software import software_versions


def test_versions_of_what_is_installed_and_nothing_for_what_is_not():
    assert software_versions("numpy", "boxmill-of-no-such-name") == {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "boxmill-of-no-such-name": "",
    }
