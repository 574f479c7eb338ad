"""The table of commands, and how any of them ends."""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer

from flows.cli import (
    anchors,
    console,
    demo,
    evaluate,
    export,
    fuse,
    gallery,
    ingest,
    look,
    models,
    review,
    stages,
    upkeep,
    versions,
)

app = typer.Typer(
    name="boxmill",
    help="Piles of images into labelled datasets, detectors and predictions, from a laptop to a Ray cluster.\n\n"
    "Every path may be any fsspec URL (s3://bucket/..., gs://bucket/...).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(ingest.app, name="ingest")
app.command("train", help=stages.TRAIN_HELP)(stages.train)
app.command("label", help=stages.LABEL_HELP)(stages.label)
app.command("fuse", help=fuse.FUSE_HELP)(fuse.fuse)
app.command("route", help=review.ROUTE_HELP)(review.route)
app.command("evaluate", help=evaluate.EVALUATE_HELP)(evaluate.evaluate)
app.command("gallery", help=gallery.GALLERY_HELP)(gallery.gallery)
app.add_typer(export.app, name="export")
app.command("lifecycle", help=stages.LIFECYCLE_HELP)(stages.lifecycle)
app.command("demo", help=demo.HELP)(demo.demo)
app.command("detectors", help=models.DETECTORS_HELP)(models.detectors)
app.add_typer(models.app, name="models")
_LOOKING, _CHANGING, _KEEPING = "Look at a dataset", "Change a dataset", "Keep a dataset"
app.command("inspect", help=look.INSPECT_HELP, rich_help_panel=_LOOKING)(look.inspect)
app.command("get", help=look.GET_HELP, rich_help_panel=_LOOKING)(look.get)
app.command("anchors", help=anchors.HELP, rich_help_panel=_LOOKING)(anchors.anchors)
app.command("duplicates", help=look.DUPLICATES_HELP, rich_help_panel=_LOOKING)(look.duplicates)
app.command("versions", help=versions.VERSIONS_HELP, rich_help_panel=_LOOKING)(versions.versions)
app.command("diff", help=versions.DIFF_HELP, rich_help_panel=_LOOKING)(versions.diff)
app.command("relabel", help=versions.RELABEL_HELP, rich_help_panel=_CHANGING)(versions.relabel)
app.command("remove", help=versions.REMOVE_HELP, rich_help_panel=_CHANGING)(versions.remove)
app.command("rollback", help=versions.ROLLBACK_HELP, rich_help_panel=_CHANGING)(versions.rollback)
app.command("purge", help=upkeep.PURGE_HELP, rich_help_panel=_CHANGING)(upkeep.purge)
app.command("verify", help=upkeep.VERIFY_HELP, rich_help_panel=_KEEPING)(upkeep.verify)
app.command("vacuum", help=upkeep.VACUUM_HELP, rich_help_panel=_KEEPING)(upkeep.vacuum)
app.command("step", hidden=True)(stages.step)


_INTERRUPTED = "interrupted; the same command again goes on where this one stopped"
_UNTOLD = {console.USAGE: "wrong usage; standard error says what", console.INTERRUPTED: _INTERRUPTED}


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and gives its exit code."""
    console.mode.json = console.mode.debug = False
    console.tell_logs()
    try:
        app(args=list(arguments), prog_name="boxmill", standalone_mode=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else console.FAILURE
        if code == console.INTERRUPTED:
            console.note(_INTERRUPTED)
        # Here no command got as far as writing its document; --json may not even have been parsed.
        if code in _UNTOLD and "--json" in arguments:
            console.write_json({"error": _UNTOLD[code], "exit_code": code})
        return code
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does: nothing went wrong here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return console.OK
    except Exception as error:
        return console.failed(error)
    return console.OK
