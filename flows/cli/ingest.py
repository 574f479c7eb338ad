"""``boxmill ingest``: one command a format."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.cli import console
from flows.cli.options import Debug, Json, Prefect, RayAddress, SourceOptions, execute, gather

app = typer.Typer(
    help="Read images and annotations of a source into a dataset version. The same command again resumes, and "
    "another source appends.",
    no_args_is_help=True,
)

COCO_HELP = """COCO JSON: boxes, polygons, RLE crowds, keypoints.

Example: `boxmill ingest coco annotations/instances_train2017.json --images train2017 --dataset data/coco`
"""
VOC_HELP = """PASCAL VOC: JPEGImages/, Annotations/*.xml and ImageSets/Main/*.txt in one folder.

Example: `boxmill ingest voc VOCdevkit/VOC2012 --dataset data/voc`
"""
SYNTHETIC_HELP = """Drawn scenes from a seed, with boxes, polygons and keypoints.

Example: `boxmill ingest synthetic --dataset data/drawn --num-train 500 --num-val 100`
"""
IMAGES_HELP = """Images without annotations: a folder, tar, tar.gz or zip.

Example: `boxmill ingest images photos.zip --dataset data/photos`
"""

FROM_HELP = """Any source that boxmill knows, its options given with --set; they are in docs/ingest.md.

Example: `boxmill ingest from yolo --set uri=yolo/data.yaml --dataset data/yolo`
"""

DatasetUri = Annotated[str, typer.Option("--dataset", help="Dataset to write, any fsspec URL; made if new.")]
LabelSet = Annotated[str, typer.Option(help="Name of the truth's label set.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse what is bad instead of mending or quarantining it.")]
HashInputs = Annotated[
    bool, typer.Option("--hash-inputs", help="Recognise changed inputs by sha256, not by size and time.")
]


@app.command("coco", help=COCO_HELP)
def coco(
    annotations: Annotated[str, typer.Argument(help="An instances_*.json, any fsspec URL.")],
    dataset: DatasetUri,
    images: Annotated[
        str | None, typer.Option(help="Folder that file_name is relative to; guessed where not given.")
    ] = None,
    keypoints: Annotated[
        list[str] | None, typer.Option(help="A person_keypoints_*.json to join; give it again for more.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Name of the split; guessed from the file's name.")] = None,
    label_set: LabelSet = "gt",
    strict: Strict = False,
    hash_inputs: HashInputs = False,
    ray_address: RayAddress = None,
    prefect: Prefect = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    options = {"annotations": annotations, "images": images, "keypoints": keypoints or None, "split": split}
    _ingest("coco", options, dataset, label_set, strict, hash_inputs, ray_address, prefect)


@app.command("voc", help=VOC_HELP)
def voc(
    root: Annotated[str, typer.Argument(help="Folder with JPEGImages and Annotations, any fsspec URL.")],
    dataset: DatasetUri,
    split: Annotated[
        list[str] | None, typer.Option(help="A file of ImageSets/Main; give it again for more. Default: its splits.")
    ] = None,
    label_set: LabelSet = "gt",
    strict: Strict = False,
    hash_inputs: HashInputs = False,
    ray_address: RayAddress = None,
    prefect: Prefect = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    options = {"root": root, **({"splits": split} if split else {})}
    _ingest("voc", options, dataset, label_set, strict, hash_inputs, ray_address, prefect)


@app.command("synthetic", help=SYNTHETIC_HELP)
def synthetic(
    dataset: DatasetUri,
    num_train: Annotated[int, typer.Option(min=0)] = 500,
    num_val: Annotated[int, typer.Option(min=0)] = 100,
    size: Annotated[int, typer.Option(min=96, help="Width and height, pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    label_set: LabelSet = "gt",
    ray_address: RayAddress = None,
    prefect: Prefect = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    options = {"num_train": num_train, "num_val": num_val, "size": [size, size], "seed": seed}
    _ingest("synthetic", options, dataset, label_set, False, False, ray_address, prefect)


@app.command("images", help=IMAGES_HELP)
def images(
    source: Annotated[str, typer.Argument(help="Folder, tar, tar.gz or zip, any fsspec URL.")],
    dataset: DatasetUri,
    label_set: LabelSet = "gt",
    strict: Strict = False,
    hash_inputs: HashInputs = False,
    ray_address: RayAddress = None,
    prefect: Prefect = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    _ingest("archive", {"uri": source}, dataset, label_set, strict, hash_inputs, ray_address, prefect)


@app.command("from", help=FROM_HELP)
def from_kind(
    kind: Annotated[str, typer.Argument(help="Kind of source, such as yolo, cvat, label_studio, open_images, lvis.")],
    dataset: DatasetUri,
    settings: SourceOptions = None,
    label_set: LabelSet = "gt",
    strict: Strict = False,
    hash_inputs: HashInputs = False,
    ray_address: RayAddress = None,
    prefect: Prefect = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    _ingest(kind, gather(None, settings, {}), dataset, label_set, strict, hash_inputs, ray_address, prefect)


def _ingest(
    kind: str,
    options: dict[str, Any],
    dataset: str,
    label_set: str,
    strict: bool,
    hash_inputs: bool,
    ray_address: str | None,
    prefect: bool | None,
) -> None:
    from flows.config import IngestConfig

    config = IngestConfig(
        source=kind,
        options=options,
        dataset=dataset,
        label_set=label_set,
        strict=strict,
        hash_inputs=hash_inputs,
        ray_address=ray_address,
    )
    version = execute("ingest", config, prefect=prefect)
    if console.mode.json:
        console.write_json(version)
        return
    splits = {f"images of {name or 'no split'}": count for name, count in version["splits"].items()}
    counts = {"images": version["num_images"], "objects": version["num_objects"], **splits}
    console.show("Dataset", {"reference": version["reference"], "digest": version["digest"], **counts})
    for reason, count in version["ledger"].get("reasons", {}).items():
        console.warn(f"{count} x {reason}")
