"""What the documentation says is true of the program: commands parse, links lead somewhere, references are in step."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from flows.cli.app import app
from flows.cli.reference import DOCS, PAGES, commands, in_step

ROOT = Path(__file__).resolve().parents[3]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = typer.main.get_command(app)


def parse(line: str) -> None:
    """Parses a command line as ``boxmill`` would, without running it."""
    words, command, context = shlex.split(line)[1:], COMMAND, None
    name = "boxmill"
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not getattr(command, "commands", None):
            return
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def bash_lines(page: Path) -> list[str]:
    """The commands of a page's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


CALLS = [(page.name, line) for page in FILES for line in bash_lines(page) if line.startswith("boxmill ")]
EXAMPLES = [
    (" ".join(path), example)
    for path, command in commands(COMMAND)
    for example in re.findall(r"Example: `(boxmill [^`]*)`", command.help or "")
]


@pytest.mark.parametrize(("page", "line"), CALLS)
def test_every_command_of_the_documentation_parses(page, line):
    parse(line)


@pytest.mark.parametrize(("command", "line"), EXAMPLES)
def test_every_example_of_the_help_is_its_own_and_parses(command, line):
    assert line.startswith(command)
    parse(line)


def test_every_command_has_an_example():
    assert {command for command, _ in EXAMPLES} == {" ".join(path) for path, _ in commands(COMMAND)}


@pytest.mark.parametrize(
    "line", ["boxmill train data --out m --epochz 3", "boxmill export yolo d --out x", "boxmill label d"]
)
def test_a_wrong_command_does_not_parse(line):
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parse(line)


def test_make_targets_of_the_documentation_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = {target for page in FILES for target in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.M)}
    assert named and named <= targets


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_references_are_in_step_with_the_program(page):
    assert (DOCS / page).read_text() == in_step(page), "run python -m flows.cli.reference"


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.name)
def test_source_files_that_are_named_exist(page):
    named = re.findall(r"`((?:flows|workers|pipelines|detectors|tests)/[\w/.-]+)`", page.read_text())
    for path in named:
        assert (ROOT / path).exists(), path
