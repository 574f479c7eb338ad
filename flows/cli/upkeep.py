"""``verify``, ``vacuum`` and ``purge``: the files of a dataset."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli import console
from flows.cli.options import DryRun, ImageIds, Limit, Output, Yes, spread

VERIFY_HELP = """Read every file of a dataset again and compare it with the digests taken when it was written.

Ends with 5 if anything is missing, cut or changed; each damaged file is named, and each damaged image in it.

Example: `boxmill verify data/cells`
"""
VACUUM_HELP = """Delete files that no version names: what killed workers and lost races left behind.

Every version stays readable.

Example: `boxmill vacuum data/cells --grace-hours 168 --dry-run`
"""
PURGE_HELP = """Delete images for good: out of all label sets and versions, and their bytes out of the store.

For when the law asks; `boxmill remove` is the reversible way.

Example: `boxmill purge data/cells JPEGImages/BloodImage_00007.jpg --dry-run`
"""


@spread
def verify(
    dataset: Annotated[
        str,
        typer.Argument(help="URI for the newest version of every label set, or the reference of one version."),
    ],
    limit: Limit = 100,
    *,
    output: Output,
) -> None:
    from flows.progress import stage
    from pipelines.maintenance import verify as verify_one
    from pipelines.maintenance import verify_newest

    check = verify_one if "@labels/" in dataset else verify_newest
    with console.results_only_on_stdout(), console.Bars() as bars:
        problems = check(dataset, progress=stage(bars, "verify"))
    if console.mode.json:
        found = [asdict(problem) for problem in problems]
        console.write_json({"dataset": dataset, "sound": not problems, "problems": found})
    elif problems:
        rows = [[problem.path, problem.what] for problem in problems]
        console.show_limited(f"Problems in {dataset}: {len(problems):,}", ["file", "problem"], rows, limit, texts=2)
    else:
        console.show("Verified", {"dataset": dataset, "problems": 0})
    if problems:
        raise typer.Exit(console.DAMAGED)


@spread
def vacuum(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=1, help="Younger files stay; longer than the longest ingest takes.")
    ] = 168.0,
    limit: Limit = 20,
    dry_run: DryRun = False,
    yes: Yes = False,
    *,
    output: Output,
) -> None:
    from pipelines.maintenance import vacuum as delete

    found = delete(dataset, grace_hours=grace_hours, dry_run=True)
    if not console.mode.json:
        told = {"dataset": dataset, "files": len(found.paths), "bytes": found.size}
        console.show("Vacuum", told | ({"plans given up": len(found.plans)} if found.plans else {}))
        console.show_limited("Files", ["file"], [[path] for path in found.paths], limit)
    if found.paths and not dry_run:
        if not console.agreed(f"Delete {len(found.paths):,} files?", yes):
            raise typer.Exit(console.USAGE)
        found = delete(dataset, grace_hours=grace_hours)
        console.note(f"{len(found.paths):,} files were deleted")
    if console.mode.json:
        console.write_json({"dataset": dataset, **asdict(found)})


@spread
def purge(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset; all its label sets are changed.")],
    images: ImageIds,
    dry_run: DryRun = False,
    yes: Yes = False,
    *,
    output: Output,
) -> None:
    from pipelines.purging import Purged, purge_images

    def show(title: str, version: str, done: Purged) -> None:
        if console.mode.json:
            return
        console.show(
            title,
            {"images": len(done.image_ids), "image files to rewrite or delete": len(done.shards)}
            | ({"of these never committed": len(done.uncommitted)} if done.uncommitted else {})
            | {f"{version} {name}": reference for name, reference in done.versions.items()},
        )
        for image_id in done.copies:
            console.warn(f"{image_id} has the same bytes as one of them and is not purged")

    ids = images.read()
    done = purge_images(dataset, ids, dry_run=True)
    show("To purge", "changes", done)
    if not dry_run:
        if not console.agreed(f"Delete {len(done.image_ids):,} images for good, out of every version?", yes):
            raise typer.Exit(console.USAGE)
        done = purge_images(dataset, ids)
        show("Purged", "newest version of", done)
    if console.mode.json:
        console.write_json({"dataset": dataset, **asdict(done)})
