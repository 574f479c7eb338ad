"""``python -m flows.cli``, for a cluster where the program ``boxmill`` is not installed."""

from __future__ import annotations

from flows.cli import main

main()
