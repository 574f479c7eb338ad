"""What a person or a script sees: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

OK, FAILURE, USAGE, BAD_INPUT, INCOMPLETE, DAMAGED, BELOW, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

# Highlighting would colour numbers and paths at random.
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(slots=True)
class Mode:
    """What the options of this call ask for; set while they are parsed."""

    json: bool = False
    debug: bool = False


mode = Mode()


def failed(error: BaseException) -> int:
    """Tells an error and gives the exit code."""
    from flows.errors import describe, is_bad_input

    code = BAD_INPUT if is_bad_input(error) else FAILURE
    if mode.debug:
        err.print("".join(traceback.format_exception(error)), markup=False)
    err.print(f"[bold red]error:[/] {_escape(describe(error))}")
    if code == FAILURE and not mode.debug:
        err.print("[dim]run it again with --debug for the traceback[/]")
    if mode.json:
        write_json({"error": describe(error), "exit_code": code})
    return code


def write_json(document: Mapping[str, Any]) -> None:
    """The one JSON document on standard output."""
    print(json.dumps(document, default=str), flush=True)


def note(text: str) -> None:
    """A line for people, on standard error."""
    err.print(_escape(text))


def warn(text: str) -> None:
    err.print(f"[yellow]warning:[/] {_escape(text)}")


class _Notes(logging.Handler):
    """What the workers log, told like any other note."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def tell_logs() -> None:
    """From here on, what ``boxmill`` logs is told on standard error."""
    logger = logging.getLogger("boxmill")
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        logger.addHandler(_Notes())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def show(title: str, rows: Mapping[str, Any]) -> None:
    """Names and values on standard output, for people; nothing is cut, so that paths can be copied."""
    width = max((len(name) for name in rows), default=0)
    out = _out()
    out.print(f"[bold]{_escape(title)}[/]")
    for name, value in rows.items():
        out.print(f"  [dim]{_escape(name.ljust(width))}[/]  {_escape(format_value(value))}")


def show_table(title: str, columns: list[str], rows: list[list[Any]], *, texts: int = 1) -> None:
    """A table on standard output, for people; the first columns are ``texts``, the others are numbers."""
    cells = [columns, *([format_value(value) for value in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    out = _out()
    out.print(f"[bold]{_escape(title)}[/]")
    for number, row in enumerate(cells):
        padded = [
            text.ljust(width) if at < texts else text.rjust(width) for at, (text, width) in enumerate(zip(row, widths))
        ]
        line = _escape("  " + "  ".join(padded).rstrip())
        out.print(f"[dim]{line}[/]" if number == 0 else line)


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


def show_limited(title: str, columns: list[str], rows: list[list[Any]], limit: int, *, texts: int = 1) -> None:
    """As ``show_table``, at most ``limit`` rows (0 for all), and how many more there are."""
    shown = rows[:limit] if limit else rows
    if rows:
        show_table(title, columns, shown, texts=texts)
    if len(shown) < len(rows):
        note(f"... and {len(rows) - len(shown):,} more; --limit 0 shows all")


def agreed(question: str, yes: bool) -> bool:
    """Whether what cannot be undone may be done: by ``--yes``, or by the answer of whoever sits at a terminal."""
    if yes:
        return True
    if not mode.json and sys.stdin.isatty():
        return typer.confirm(question, err=True)
    err.print("[bold red]error:[/] nothing was done; give --yes to do it, or --dry-run to look only")
    return False


def format_value(value: Any) -> str:
    """Numbers at a readable length; -1 of a metric without truth stays a number."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}".rstrip("0").rstrip(".")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


@contextmanager
def results_only_on_stdout() -> Iterator[None]:
    """Whatever libraries and child processes print goes to standard error, so that stdout is the result alone."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


class Bars:
    """The progress callback of the workers as bars, one a stage; plain lines where there is no terminal."""

    def __init__(self, console: Console = err) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._terminal = console.is_terminal
        self._bars: dict[str, Any] = {}
        self._told: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Bars:
        if self._terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._progress.stop()

    def __call__(self, stage: str, done: int, total: int, **numbers: float) -> None:
        text = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        if not self._terminal:
            self._line(stage, done, total, text)
            return
        if stage not in self._bars or self._progress.tasks[self._bars[stage]].completed > done:
            self._bars[stage] = self._progress.add_task(stage, total=total, numbers=text)
        self._progress.update(self._bars[stage], completed=done, total=total, numbers=text)

    def _line(self, stage: str, done: int, total: int, text: str) -> None:
        """A line at the start, at the end, and every ten seconds between: a log stays short."""
        at, last = self._told.get(stage, (-1e9, -1))
        now = time.monotonic()
        if done == last or (done < total and now - at < 10):
            return
        self._told[stage] = (now, done)
        note(f"{stage} {done}/{total} {text}".rstrip())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
