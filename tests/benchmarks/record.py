"""Where, with what and by which command a benchmark was measured, and the file that keeps its numbers."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")
_PACKAGES = ("boxmill", "torch", "torchvision", "timm", "ray", "pyarrow", "numpy")


def hardware() -> str:
    """Processor, the cores this process may use, memory, and the load before the run."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {memory:.0f} GB"


def load_average() -> float:
    """Of the last minute: above 0.3 before a run, something else was using the machine."""
    return os.getloadavg()[0]


def versions() -> str:
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in _PACKAGES)])


def commit() -> str:
    """The short hash of the code that ran, with ``+`` where it was changed since."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True).stdout.strip()

    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{'+' if git('status', '--porcelain') else ''}"


def command() -> str:
    """What was typed, as far as Python knows."""
    module = getattr(sys.modules["__main__"].__spec__, "name", None)
    program = ["python", "-m", module] if module else [sys.executable, sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table; the first row names the columns."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(str(row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def append_result(title: str, body: str, *, load_before: float, results: Path = RESULTS) -> None:
    """Adds a section to ``results.md``."""
    section = f"""
## {title}, {datetime.now(UTC):%Y-%m-%d}

- command: `{command()}` at {commit()}
- hardware: {hardware()}, load before the run {load_before:.2f}
- versions: {versions()}

{body}
"""
    text = results.read_text() if results.exists() else "# Measured\n"
    results.write_text(text.rstrip("\n") + "\n" + section)
