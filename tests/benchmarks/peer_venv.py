"""The named peers live in a virtual environment of their own, made on first use under ``bench-out/peers-venv``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_FOLDER = Path("bench-out/peers-venv")
_SCRIPTS = Path(__file__).with_name("peers")
PEERS = ("webdataset", "mds", "huggingface")


def run_peer(script: str, *arguments: str) -> dict[str, Any]:
    """Run ``peers/<script>.py`` with the peers' Python; its last line is JSON.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    return run_measured([str(peer_python()), str(_SCRIPTS / f"{script}.py"), *arguments])


def run_measured(command: list[str]) -> dict[str, Any]:
    """Run a command whose last line of output is JSON; see ``run_peer``."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peer_python() -> Path:
    """The interpreter of the peers' environment, installing what is missing."""
    requirements = _SCRIPTS / "requirements.txt"
    stamp, python = _FOLDER / "installed.txt", _FOLDER / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"installing the peers into {_FOLDER} (minutes) ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(_FOLDER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
        stamp.write_text(requirements.read_text())
    return python


def peer_versions() -> str:
    lines = (_SCRIPTS / "requirements.txt").read_text().splitlines()
    return ", ".join(line.replace("==", " ") for line in lines if "==" in line)
