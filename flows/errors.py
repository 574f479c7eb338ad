"""What an error means to a user: one line, and whose fault it is."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from flows.config import explain

BAD_INPUT = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)


class BelowGate(RuntimeError):
    """An evaluation that was made, and whose numbers are not what they must be.

    Attributes:
        told: which, in words.
        found: the evaluation's result.
    """

    def __init__(self, told: str, found: dict[str, Any]) -> None:
        super().__init__(told, found)  # both, so that it can be pickled
        self.told, self.found = told, found

    def __str__(self) -> str:
        return self.told


def unwrap(error: BaseException) -> BaseException:
    """The error that a Ray task raised, without Ray's wrapping and its remote traceback."""
    cause = getattr(error, "cause", None)
    while isinstance(cause, BaseException) and type(error).__module__.startswith("ray."):
        error, cause = cause, getattr(cause, "cause", None)
    return error


def is_bad_input(error: BaseException) -> bool:
    """True for what the user gave and can mend: such errors are told in a line, without a traceback."""
    return isinstance(unwrap(error), BAD_INPUT)


def describe(error: BaseException) -> str:
    """One line for people."""
    error = unwrap(error)
    if isinstance(error, ValidationError):
        return explain(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error).strip()
    return text if text and is_bad_input(error) else f"{type(error).__name__}: {text}".rstrip(": ")
