"""What made a prediction set: the model, and the settings on which its predictions depend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CUT_BY = frozenset({"splits", "task_images"})
"""Settings that say which images a run labels, and how many a task has: no prediction depends on them."""


def check_made_alike(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to mix what two models, or one with two settings, have made: a version names one of each.

    Args:
        where: the prediction set, for the message.
        before: its newest version's provenance.
        now: of what is to be added.
    Raises:
        ValueError: they were made otherwise.
    """
    found = differences(before, now)
    if found:
        raise ValueError(
            f"{where} was made otherwise than what is to be added: {'; '.join(found)}. One set has predictions of one "
            "model with one choice of settings; give these another label set, with --out"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which model and settings two provenances differ, each in words; nothing where sets may be one."""
    models = [dict(provenance.get("model") or {}) for provenance in (before, now)]
    found = []
    if models[0].get("digest") != models[1].get("digest"):
        found.append(f"by {_named(models[0])}, these by {_named(models[1])}")
    one, other = (dict(provenance.get("settings") or {}) for provenance in (before, now))
    for name in sorted((one.keys() | other.keys()) - CUT_BY):
        if name not in one or name not in other or one[name] != other[name]:
            found.append(f"{_setting(one, name)}, these {_setting(other, name)}")
    return found


def _named(model: Mapping[str, Any]) -> str:
    if "digest" not in model:
        return "no model alone"
    return f"the model {model.get('uri', '')} (digest {str(model['digest'])[:12]})".replace("  ", " ")


def _setting(settings: Mapping[str, Any], name: str) -> str:
    return f"with {name}={settings[name]}" if name in settings else f"without {name}"
