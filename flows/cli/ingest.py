"""``boxmill ingest``: one command a format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from flows.cli import console
from flows.cli.options import OnRay, SourceOptions, execute, gather, spread

app = typer.Typer(
    help="Read images and annotations of a source into a dataset version. The same command again resumes, and "
    "another source appends.",
    no_args_is_help=True,
)

COCO_HELP = """COCO JSON: boxes, polygons, RLE crowds, keypoints.

Example: `boxmill ingest coco annotations/instances_train2017.json --images train2017 --dataset data/coco`
"""
VOC_HELP = """PASCAL VOC: a folder with JPEGImages, Annotations and ImageSets/Main.

Example: `boxmill ingest voc VOCdevkit/VOC2012 --dataset data/voc`
"""
YOLO_HELP = """YOLO: a data.yaml with images and label files; boxes, outlines or keypoints.

Example: `boxmill ingest yolo yolo/data.yaml --dataset data/yolo`
"""
SYNTHETIC_HELP = """Drawn scenes from a seed, with boxes, polygons and keypoints.

Example: `boxmill ingest synthetic --dataset data/drawn --num-train 500 --num-val 100`
"""
IMAGES_HELP = """Images without annotations: a folder, tar, tar.gz or zip.

Example: `boxmill ingest images photos.zip --dataset data/photos --split-ratio train=0.8,val=0.2`
"""
FROM_HELP = """Any other source: cvat, label_studio, open_images, hf_parquet, lvis, panoptic, webdataset, url_list.

What is special to a kind is given with --set; docs/ingest.md has all kinds and their options.

Example: `boxmill ingest from cvat annotations.xml --set images=frames --dataset data/cvat`
"""

_CHECKS, _DUPLICATES, _SPLITS = "Checks", "Duplicates", "Splits"
# The ledger's reason for what --dedupe drop has left out.
_DROPPED = "image dropped: same bytes as an earlier image"
# A source's first option, where that is a place to read from.
_PLACES = ("uri", "annotations", "root", "boxes")


@dataclass(frozen=True, kw_only=True)
class IngestOptions(OnRay):
    """What every kind of source takes; settings that are not given are those of --config, else the usual ones."""

    dataset: Annotated[str, typer.Option("--dataset", help="Dataset to write, any fsspec URL; made if new.")]
    label_set: Annotated[
        str | None, typer.Option("--label-set", help="Name of the truth's label set. Default: gt.")
    ] = None
    config: Annotated[
        str | None,
        typer.Option("--config", help="JSON or YAML file of these settings; options win over it.", metavar="FILE"),
    ] = None
    strict: Annotated[
        bool | None,
        typer.Option(
            "--strict", help="Refuse what is bad instead of mending or quarantining it.", rich_help_panel=_CHECKS
        ),
    ] = None
    deep_check: Annotated[
        bool | None,
        typer.Option(
            "--deep-check",
            help="Decode every image to its last pixel, and quarantine what is damaged.",
            rich_help_panel=_CHECKS,
        ),
    ] = None
    hash_inputs: Annotated[
        bool | None,
        typer.Option(
            "--hash-inputs",
            help="Recognise changed inputs by sha256, not by size and time.",
            rich_help_panel=_CHECKS,
        ),
    ] = None
    dedupe: Annotated[
        Literal["report", "drop", "keep"] | None,
        typer.Option(
            "--dedupe",
            help="Images with the same bytes: count them, drop later ones (never the only labelled one), or keep "
            "without looking. Default: report.",
            rich_help_panel=_DUPLICATES,
        ),
    ] = None
    near_duplicates: Annotated[
        bool | None,
        typer.Option(
            "--near-duplicates",
            help="Count images that look like an earlier one; decodes all of them. `boxmill duplicates` lists them.",
            rich_help_panel=_DUPLICATES,
        ),
    ] = None
    split_ratio: Annotated[
        str | None,
        typer.Option(
            "--split-ratio",
            help="Divide the images, always alike, e.g. train=0.8,val=0.2. Default: the source's own splits.",
            metavar="NAME=SHARE,...",
            rich_help_panel=_SPLITS,
        ),
    ] = None
    split_by: Annotated[
        str | None,
        typer.Option(
            "--split-by",
            help="What stays in one split: group_id, image_id, or a column of the source such as patient. Default: "
            "group_id, and the image itself where the source knows no groups.",
            metavar="COLUMN",
            rich_help_panel=_SPLITS,
        ),
    ] = None
    split_pattern: Annotated[
        str | None,
        typer.Option(
            "--split-pattern",
            help="Regular expression on image_id that gives the group instead, e.g. '^([^/]+)/' for its folder.",
            metavar="REGEX",
            rich_help_panel=_SPLITS,
        ),
    ] = None
    split_seed: Annotated[
        int | None,
        typer.Option("--split-seed", help="Another seed gives another division.", rich_help_panel=_SPLITS),
    ] = None
    split_keep: Annotated[
        list[str] | None,
        typer.Option(
            "--split-keep",
            help="A split that stays as the source has it, e.g. test; give it again for more.",
            metavar="SPLIT",
            rich_help_panel=_SPLITS,
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """What was given, of the settings of an ``IngestConfig``."""
        names = (
            *("dataset", "label_set", "strict", "deep_check", "hash_inputs", "dedupe", "near_duplicates"),
            *("split_ratio", "split_by", "split_pattern", "split_seed", "ray_address"),
        )
        return {name: getattr(self, name) for name in names} | {"split_keep": self.split_keep or None}


@app.command("coco", help=COCO_HELP)
@spread
def coco(
    annotations: Annotated[str, typer.Argument(help="An instances_*.json, any fsspec URL.")],
    images: Annotated[
        str | None, typer.Option("--images", help="Folder that file_name is relative to; guessed where not given.")
    ] = None,
    keypoints: Annotated[
        list[str] | None,
        typer.Option("--keypoints", help="A person_keypoints_*.json to join; give it again for more."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Name of the split; guessed from the file's name.")
    ] = None,
    *,
    more: IngestOptions,
) -> None:
    options = {"annotations": annotations, "images": images, "keypoints": keypoints or None, "split": split}
    _ingest("coco", options, more)


@app.command("voc", help=VOC_HELP)
@spread
def voc(
    root: Annotated[str, typer.Argument(help="Folder with JPEGImages and Annotations, any fsspec URL.")],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="A file of ImageSets/Main; give it again for more. Default: its splits."),
    ] = None,
    *,
    more: IngestOptions,
) -> None:
    _ingest("voc", {"root": root, **({"splits": split} if split else {})}, more)


@app.command("yolo", help=YOLO_HELP)
@spread
def yolo(
    source: Annotated[str, typer.Argument(help="A data.yaml or its folder, any fsspec URL.")],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="train, val or test; give it again for more. Default: all that the file names."),
    ] = None,
    *,
    more: IngestOptions,
) -> None:
    _ingest("yolo", {"uri": source, **({"splits": split} if split else {})}, more)


@app.command("synthetic", help=SYNTHETIC_HELP)
@spread
def synthetic(
    num_train: Annotated[int, typer.Option("--num-train", min=0, help="Images of the split train.")] = 500,
    num_val: Annotated[int, typer.Option("--num-val", min=0, help="Images of the split val.")] = 100,
    size: Annotated[int, typer.Option("--size", min=96, help="Width and height, pixels.")] = 256,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 0,
    *,
    more: IngestOptions,
) -> None:
    _ingest("synthetic", {"num_train": num_train, "num_val": num_val, "size": [size, size], "seed": seed}, more)


@app.command("images", help=IMAGES_HELP)
@spread
def images(
    source: Annotated[str, typer.Argument(help="Folder, tar, tar.gz or zip, any fsspec URL.")],
    *,
    more: IngestOptions,
) -> None:
    _ingest("archive", {"uri": source}, more)


@app.command("from", help=FROM_HELP)
@spread
def from_kind(
    kind: Annotated[str, typer.Argument(help="Kind of source.")],
    place: Annotated[
        str | None, typer.Argument(help="Its file or folder, any fsspec URL; the first option of the kind.")
    ] = None,
    settings: SourceOptions = None,
    *,
    more: IngestOptions,
) -> None:
    options = gather(None, settings, {})
    _ingest(kind, options if place is None else {place_option(kind): place} | options, more)


def place_option(kind: str) -> str:
    """The option of a source that says where it is.

    Raises:
        ValueError: no such kind, or it is not read from a place.
    """
    from pipelines.sources import source_options

    first = next(iter(source_options(kind)), "")
    if first not in _PLACES:
        raise ValueError(f"a source of kind {kind!r} is not read from one place; give its options with --set")
    return first


def _ingest(kind: str, options: dict[str, Any], more: IngestOptions) -> None:
    from flows.config import IngestConfig

    given = {"source": kind, "options": options, **more.settings()}
    version = execute("ingest", IngestConfig(**gather(more.config, None, given)), prefect=more.prefect)
    if console.mode.json:
        console.write_json(version)
    else:
        show_version("Dataset", version)


def show_version(title: str, version: dict[str, Any], *, ledger: bool = True) -> None:
    """A version, for people.

    Args:
        title: of the table.
        version: as ``ingest`` gives it.
        ledger: tell also what its ledger and its search for duplicates have to tell of what was brought in.
    """
    splits = {f"images of {name or 'no split'}": count for name, count in sorted(version["splits"].items())}
    counts = {"images": version["num_images"], "objects": version["num_objects"], **splits}
    found = {"found": "it was there already"} if version["found"] else {}
    console.show(title, {"reference": version["reference"], "digest": version["digest"], **counts, **found})
    if not ledger:
        return
    reasons = version["ledger"].get("reasons", {})
    for reason, count in reasons.items():
        console.warn(f"{count:,} x {reason}")
    if reasons:
        console.note(f"what and why: boxmill inspect {version['reference']} --ledger")
    same, alike = version["duplicates"], version["near_duplicates"]
    left = same.get("images", 0) - reasons.get(_DROPPED, 0)
    if left > 0:
        console.warn(
            f"images with the same bytes as an earlier one: {same['images']:,} ({same['labels_differ']:,} with other "
            f"labels, {same['first_unlabelled']:,} of which only the later one is labelled, "
            f"{same['across_splits']:,} in another split)"
        )
    if alike:
        across = alike["across_splits"]
        console.warn(f"images that look like an earlier one: {alike['images']:,} ({across:,} in another split)")
    if left > 0 or alike:
        console.note(f"which: boxmill duplicates {version['reference']}{' --near' if alike else ''}")
