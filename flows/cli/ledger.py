"""``inspect --ledger``: what became of everything that a version's sources held."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from flows.cli import console

FATES = ("seen", "imported", "mended", "dropped", "quarantined")


def show_ledger(reference: str, *, fates: Collection[str], reason: str, limit: int) -> None:
    """The sums by fate and by reason, then the entries.

    Args:
        reference: of the version.
        fates: of the entries to list; none for all.
        reason: text that the reason of an entry to list must have.
        limit: most entries to list; 0 for all.
    """
    from pipelines.ledger_listing import read_ledger

    found = read_ledger(reference)
    wanted = _chosen(found, fates, reason.lower())
    entries = [entry.to_json() for entry in islice(wanted, limit or None)]
    more = next(wanted, None) is not None
    if console.mode.json:
        console.write_json({**found.to_json(), "entries": entries, "more_entries": more})
        return
    console.show("Ledger", {"reference": found.reference, "plans": ", ".join(found.plans)})
    subjects = {"images": found.images, "annotations": found.annotations}
    rows = [[name, *(counts[fate] for fate in FATES), _sum(counts)] for name, counts in subjects.items()]
    console.show_table("Fates", ["", *FATES, ""], rows)
    if found.reasons:
        console.show_table("Reasons", ["reason", "count"], [[name, count] for name, count in found.reasons.items()])
    if entries:
        console.show_table("Entries", ["fate", "image", "annotation", "reason", "detail"], _rows(entries), texts=5)
    if more:
        console.note("... and more; --limit 0 shows all, --fate and --reason choose")


def _chosen(found: Any, fates: Collection[str], reason: str) -> Iterator[Any]:
    for entry in found.entries():
        if (not fates or entry.fate in fates) and reason in entry.reason.lower():
            yield entry


def _rows(entries: list[dict[str, Any]]) -> list[list[Any]]:
    return [
        [
            entry["fate"],
            entry["image_id"] or "-",
            # Ids are no quantities: without thousands separators they can be searched for.
            "-" if entry["annotation_id"] is None else str(entry["annotation_id"]),
            entry["reason"],
            entry["detail"],
        ]
        for entry in entries
    ]


def _sum(counts: Any) -> str:
    return "adds up" if counts["seen"] == sum(counts[fate] for fate in FATES[1:]) else "DOES NOT ADD UP"
