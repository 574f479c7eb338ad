"""What a stage's result says to a person, in few rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def account_rows(account: Mapping[str, Any]) -> dict[str, Any]:
    """What labelling took, see ``workers.label_account.LabelAccount``: rates of this call where it did something."""
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in account["stage_seconds"].items())
    rows = {
        "images": account["images"],
        **({"carry another's predictions": account["copied"]} if account.get("copied") else {}),
        "quarantined": account["quarantined"],
        "tasks given up": account["tasks_given_up"],
        "retries": account["retries"],
        "GB read": account["bytes_read"] / 1e9,
        "seconds by stage": stages,
    }
    run = account["run"]
    if run is None:
        return rows
    rows |= {"images/s": run["images_per_second"], "model busy": run["model_busy"]}
    if run["cost_per_million_images"] is not None:
        rows["cost of a million images"] = run["cost_per_million_images"]
    return rows
