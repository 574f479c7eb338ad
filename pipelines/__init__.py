"""Data at rest: sources, shards, versions, predictions, metrics, exports, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.predictions import open_predictions
    from pipelines.versions import open_dataset

__all__ = ["open_dataset", "open_predictions"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `import pipelines` stays cheap for the command line.
    match name:
        case "open_dataset":
            from pipelines.versions import open_dataset

            return open_dataset
        case "open_predictions":
            from pipelines.predictions import open_predictions

            return open_predictions
        case _:
            raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
