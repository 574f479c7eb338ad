"""An evaluation as Markdown, from its JSON: for a flow's artifact, a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.storage import redact

MOST_CLASSES = 100
_MOST_CONFUSED = 10
_PROTOCOLS = {"coco": "COCO", "voc07": "PASCAL VOC 2007", "voc10": "PASCAL VOC 2010", "lvis": "LVIS"}
_KINDS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
# What would end a cell, or be taken for markup.
_ESCAPED = str.maketrans(
    {**{c: f"\\{c}" for c in "\\|`*_[]"}, "<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " "}
)


def to_markdown(
    found: Mapping[str, Any], *, title: str = "Detection report", notes: Sequence[str] = (), gates: Sequence[str] = ()
) -> str:
    """Write what ``EvaluationResult.to_json`` says.

    Args:
        found: numbers and, where it was made, analysis.
        title: of the document.
        notes: sentences that come first.
        gates: of ``--fail-under``, in words, that come before everything.
    """
    measured = f"{_PROTOCOLS[found['protocol']]} {_KINDS[found['iou_type']]}"
    counts = f"{found['num_images']:,} images"
    if "num_truths" in found:
        counts += f", {found['num_truths']:,} objects, {found['num_detections']:,} detections"
    splits = ", ".join(_text(split or "no split") for split in found["splits"])
    parts = [
        f"# {_text(title)}",
        *(f"- {_text(gate)}" for gate in gates),
        f"{measured} · {counts} · {splits}",
        *(f"> {_text(note)}" for note in notes),
        _headlines(found),
        _classes(found),
    ]
    analysis = found.get("analysis")
    if analysis is not None:
        parts += [_errors(analysis["errors"]), _confused(analysis["confusion"]), _calibration(analysis["calibration"])]
        parts += [_slices(part) for part in analysis["slices"] if len(part["parts"]) > 1]
        parts.append(_comparison(found, analysis["comparison"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _headlines(found: Mapping[str, Any]) -> str:
    intervals = (found.get("analysis") or {}).get("intervals")
    own = intervals["overall"] if intervals is not None and found["protocol"] in ("coco", "lvis") else {}
    rows = [(name, _number(value), _range(own.get(name))) for name, value in found["stats"].items()]
    head = ["number", "value", f"{intervals['confidence']:.0%} interval" if own and intervals else "interval"]
    return _table(head, rows if own else [row[:2] for row in rows])


def _classes(found: Mapping[str, Any]) -> str:
    per_class: Mapping[str, Mapping[str, Any]] = found["per_class"]
    best = ((found.get("analysis") or {}).get("thresholds") or {}).get("per_class", {})
    names = [name for name in ("AP", "AP50", "AP75") if any(name in numbers for numbers in per_class.values())]
    rows = []
    for name, numbers in list(per_class.items())[:MOST_CLASSES]:
        row = [_text(name), *(_number(numbers.get(key)) for key in names)]
        row += [f"{numbers['num_truths']:,}", f"{numbers['num_detections']:,}"]
        if best:
            row += [_number(best[name]["score"]), _number(best[name]["f1"])]
        rows.append(row)
    head = ["class", *names, "objects", "detections", *(["best score", "F1"] if best else [])]
    more = len(per_class) - MOST_CLASSES
    return f"## Classes\n\n{_table(head, rows)}" + (f"\n\n… and {more:,} more classes" if more > 0 else "")


def _errors(errors: Mapping[str, Any]) -> str:
    overall = errors["overall"]
    rows = [(kind, f"{count:,}", _number(overall["delta_ap"][kind])) for kind, count in overall["counts"].items()]
    return f"## Errors\n\n{_table(['kind', 'count', 'AP50 gained without'], rows)}"


def _confused(confusion: Mapping[str, Any]) -> str:
    pairs = confusion["most_confused"][:_MOST_CONFUSED]
    rows = [(_text(pair["truth"]), _text(pair["found"]), f"{pair['count']:,}") for pair in pairs]
    return f"## Taken for another class\n\n{_table(['truth', 'taken for', 'times'], rows)}" if rows else ""


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None or calibration["overall"]["ece"] is None:
        return ""
    overall = calibration["overall"]
    return (
        f"Calibration: scores differ from the share that is right by {overall['ece']:.3f} on average (ECE), by "
        f"{overall['mce']:.3f} at most; mean score less precision is {overall['overconfidence']:+.3f}."
    )


def _slices(part: Mapping[str, Any]) -> str:
    names = ("AP", "AP50", "AP75", "AR")
    counts = ("num_images", "num_truths", "num_detections")
    rows = [
        (_text(name), *(_number(of[key]) for key in names), *(f"{of[key]:,}" for key in counts))
        for name, of in part["parts"].items()
    ]
    head = [_text(part["by"]), *names, "images", "objects", "detections"]
    return f"## By {_text(part['by'])}\n\n{_table(head, rows)}"


def _comparison(found: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return ""
    rows = []
    for name, d in comparison["overall"].items():
        p_value = "n/a" if d["p_value"] is None else f"{d['p_value']:.3g}"
        rows.append((name, _number(d["first"]), _number(d["second"]), _signed(d), _range(d), p_value))
    head = ["number", "other", "these", "difference", f"{comparison['confidence']:.0%} interval", "p"]
    against = f" with {_text(redact(found['compared_ref']))}" if found.get("compared_ref") else ""
    return f"## Compared{against}\n\n{_table(head, rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    return str(text).translate(_ESCAPED)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _signed(difference: Mapping[str, Any]) -> str:
    return "n/a" if difference["difference"] is None else f"{difference['difference']:+.3f}"


def _range(of: Mapping[str, Any] | None) -> str:
    return "" if of is None or of["low"] is None else f"{of['low']:.3f} to {of['high']:.3f}"
