"""Checks that the options of all detectors share; each message names the option, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence


def check_choices(options: object, **allowed: Sequence[str]) -> None:
    """Each named option must be one of its words.

    Raises:
        ValueError: one is not.
    """
    for name, words in allowed.items():
        if (value := getattr(options, name)) not in words:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(words)}")


def check_at_least(options: object, **least: float) -> None:
    """Each named option must not be smaller than its number.

    Raises:
        ValueError: one is.
    """
    for name, bound in least.items():
        if not (value := getattr(options, name)) >= bound:
            raise ValueError(f"{name} is {value}; it must be at least {bound}")
