"""The command line ``boxmill``: thin over ``flows.steps`` and the flows. Nothing heavy is imported before its use."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits; see docs/cli.md for the exit codes."""
    from flows.cli import app

    sys.exit(app.run(sys.argv[1:] if arguments is None else list(arguments)))
