"""``versions``, ``diff``, ``rollback``, ``remove`` and ``relabel``: a dataset's versions, and new ones made of old."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from flows.cli import console
from flows.cli.ingest import place_option, show_version
from flows.cli.options import Flow, ImageIds, Limit, Output, SourceOptions, execute, gather, spread

_MISSING_SHOWN = 10

VERSIONS_HELP = """List the versions of a dataset: what each commit did, and the reference that names it for ever.

Example: `boxmill versions data/cells`
"""
DIFF_HELP = """Tell what one version has otherwise than another: images, annotations, splits, bytes, categories.

Example: `boxmill diff data/cells@labels/gt:1 data/cells@labels/gt:2`
"""
ROLLBACK_HELP = """Make a new version equal to an older one. Nothing is lost: the versions between stay readable.

Example: `boxmill rollback data/cells@labels/gt:1`
"""
REMOVE_HELP = """Make a new version without some images. Their bytes stay for older versions; purge deletes those.

Example: `boxmill remove data/cells JPEGImages/BloodImage_00007.jpg --ids-from bad.txt`
"""
RELABEL_HELP = """Put other labels on a dataset's images, matched by image id: in place, or as a new label set.

No image is read or written: COCO's file_name, what Label Studio and CVAT give back (--from label_studio, cvat), or
another label set (--from labels) name the images.

Example: `boxmill relabel data/cells corrected.json --label-set corrected`
"""


@spread
def versions(
    dataset: Annotated[
        str, typer.Argument(help="URI of the dataset for all its label sets, or `URI@labels/<set>` for one.")
    ],
    *,
    output: Output,
) -> None:
    from pipelines.history import list_versions

    found = list_versions(dataset)
    if console.mode.json:
        console.write_json({"versions": [entry.to_json() for entry in found]})
        return
    for label_set in dict.fromkeys(entry.label_set for entry in found):
        own = [entry for entry in found if entry.label_set == label_set]
        console.show_table(
            f"{own[0].reference.rsplit(':', 1)[0]}",
            ["version", "committed", "by", "", "images", "objects"],
            [[e.version, e.committed, e.operation, e.detail, e.images, e.objects] for e in own],
            texts=4,
        )


@spread
def diff(
    first: Annotated[str, typer.Argument(help="Reference of a version.")],
    second: Annotated[
        str | None, typer.Argument(help="Reference of another. Default: the newest of the first's label set.")
    ] = None,
    limit: Limit = 20,
    *,
    output: Output,
) -> None:
    from pipelines.references import Reference, parse_reference
    from pipelines.revisions import diff as compare
    from pipelines.versions import open_dataset

    wanted = parse_reference(first)
    newest = str(Reference(uri=wanted.uri, label_set=wanted.label_set))
    one, other = (open_dataset(reference).reference for reference in (first, second or newest))
    found = compare(one, other)
    if console.mode.json:
        console.write_json({"first": one, "second": other, "differ": bool(found), **asdict(found)})
        return
    kinds = ("added", "removed", "relabelled", "replaced")
    counts = {kind: len(getattr(found, kind)) for kind in kinds}
    console.show("Difference", {"first": one, "second": other, **counts, "categories": _changed(found.categories)})
    for kind in kinds:
        console.show_limited(kind.capitalize(), ["image"], [[i] for i in getattr(found, kind)], limit)


def _changed(differ: bool) -> str:
    return "differ" if differ else "same"


@spread
def rollback(
    dataset: Annotated[str, typer.Argument(help="Version to go back to: `URI@labels/<set>:<version>`.")],
    *,
    output: Output,
) -> None:
    from pipelines.revisions import roll_back

    _tell("Rolled back", asdict(roll_back(dataset)), ledger=False)


@spread
def remove(
    dataset: Annotated[str, typer.Argument(help="`URI` or `URI@labels/<set>`; its newest version is changed.")],
    images: ImageIds,
    *,
    output: Output,
) -> None:
    from pipelines.revisions import remove_images

    _tell("Without the images", asdict(remove_images(dataset, images.read())), ledger=False)


@spread
def relabel(
    dataset: Annotated[str, typer.Argument(help="Reference of the images.")],
    labels: Annotated[
        str | None,
        typer.Argument(help="COCO JSON, or the file, folder or label set that --from reads; any fsspec URL."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--from", help="Kind of source, see `boxmill ingest from`; or labels.", metavar="KIND")
    ] = "coco",
    settings: SourceOptions = None,
    keypoints: Annotated[
        list[str] | None,
        typer.Option("--keypoints", help="A person_keypoints_*.json to join; give it again for more."),
    ] = None,
    label_set: Annotated[
        str | None, typer.Option("--label-set", help="A new label set. Default: replace labels where they are.")
    ] = None,
    others: Annotated[
        Literal["keep", "unlabelled", "leave-out"] | None,
        typer.Option(
            "--others",
            help="Images that the source does not name: keep their labels, make them unlabelled, or leave them out. "
            "Default: keep in place, leave-out in a new label set.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse bad annotations instead of mending them.")] = False,
    *,
    where: Flow,
) -> None:
    from flows.config import RelabelConfig

    options: dict[str, Any] = {"keypoints": keypoints} if keypoints else {}
    if labels is not None:
        options["labels" if kind == "labels" else place_option(kind)] = labels
    config = RelabelConfig(
        dataset=dataset,
        source=kind,
        options=options | gather(None, settings, {}),
        label_set=label_set,
        others="leave out" if others == "leave-out" else others,
        strict=strict,
    )
    version = execute("relabel", config, prefect=where.prefect)
    _tell("Labels", version)
    _tell_missing(version.get("review", {}))


def _tell_missing(review: dict[str, Any]) -> None:
    if not review.get("missing") or console.mode.json:
        return
    shown = review["missing_images"][:_MISSING_SHOWN]
    more = ", ..." if review["missing"] > len(shown) else ""
    console.warn(f"{review['missing']:,} images that were sent out did not come back: {', '.join(shown)}{more}")


def _tell(title: str, version: dict[str, Any], *, ledger: bool = True) -> None:
    if console.mode.json:
        console.write_json(version)
    else:
        show_version(title, version, ledger=ledger)
