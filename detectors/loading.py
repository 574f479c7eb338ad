"""Weights into a detector: a released file's, or another model's, whole or as far as they fit.

The layers that predict have rows for classes. They are copied category by category, by name, so that weights of one
label map start a detector of another; what was and what was not loaded is reported.

Shape legend: C classes of the detector, K classes of the weights, G groups of rows (anchors, mostly), E rows of each
group that are for no class (a background, coordinates).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from detectors.base import Detector
from detectors.catalog import create
from detectors.keymaps import (
    LoadReport,
    State,
    WeightsMismatch,
    fold_norms,
    load_backbone_weights,
    read_weights,
    torchvision_retinanet,
)
from detectors.weights import KnownWeights, find_by_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMap:
    """How a foreign detector's tensors are called here.

    Attributes:
        rename: its state dict to one in our names, BatchNorms unfolded.
        families: what names of detectors begin with that it can be for.
    """

    rename: Callable[[State, Detector], Mapping[str, Tensor]]
    families: tuple[str, ...]


KEY_MAPS: dict[str, KeyMap] = {
    # Anchors only matter where classes are taken out, which is done here for all families alike.
    "torchvision_retinanet": KeyMap(
        rename=lambda state, _: torchvision_retinanet(state, num_anchors=1), families=("retinanet_",)
    ),
}


def load_weights(
    detector: Detector, path: Path, *, classes: Sequence[str] | None = None, rows: Sequence[str | None] | None = None
) -> LoadReport:
    """Loads a file of released weights into a detector, or into its backbone where they are a backbone's.

    Args:
        detector: in place.
        path: .pt, .pth, .bin or .safetensors, in our names or in those of a network that a key map knows.
        classes: names of the detector's labels, in order.
        rows: names of the weights' classes, in order, None for one that is unused; None where the file is not known
            to say it: then the classes are taken to be the detector's if there are as many.
    Raises:
        ValueError: the file is unreadable.
        WeightsMismatch: it holds the weights of another network.
    """
    state = read_weights(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known = find_by_digest(digest)
    if known is not None and known.trained_on == "imagenet":
        return replace(load_backbone_weights(detector, path), checked=True)
    try:
        key_map, named = _rename(state, detector, known)
        report = load_state(
            detector,
            named,
            source_classes=rows if rows is not None else (known.rows if known else None),
            classes=classes,
            norm_eps=known.norm_eps if known else None,
        )
    except WeightsMismatch as whole:
        try:
            return load_backbone_weights(detector, path)
        except ValueError as backbone:
            raise WeightsMismatch(
                f"{path} fits neither {detector.spec.name} ({whole}) nor its backbone ({backbone}); give weights of "
                "the same network"
            ) from None
    return replace(report, source=str(path), sha256=digest, key_map=key_map, checked=known is not None)


def load_state(
    detector: Detector,
    state: State,
    *,
    source_classes: Sequence[str | None] | None,
    classes: Sequence[str] | None,
    norm_eps: float | None = None,
) -> LoadReport:
    """Copies a whole detector's tensors into another one, as far as they fit.

    Args:
        detector: in place.
        state: in our names; BatchNorms folded or not.
        source_classes, classes: names of the classes there and here; None where they are unknown: then classes are
            taken to be the same if there are as many.
        norm_eps: of the BatchNorms of ``state``; None is the network's own.
    Raises:
        WeightsMismatch: the backbone is another one, or nothing fits.
    """
    folded, used = fold_norms(detector, state, norm_eps=norm_eps)
    ours = {k: v for k, v in detector.state_dict().items() if not k.endswith("num_batches_tracked")}
    predicting = class_rows(detector)
    copied: set[int] = set()
    loaded, misfits = [], []
    for key, mine in ours.items():
        theirs = folded.get(key)
        if theirs is None:
            continue
        if key in predicting:
            labels = predicting[key].copy(mine, theirs, source_classes, classes)
            copied |= labels
            (loaded if labels else misfits).append(key)
        elif theirs.shape == mine.shape:
            mine.copy_(theirs)
            loaded.append(key)
        else:
            misfits.append(key)
    untouched = tuple(key for key in ours if key not in set(loaded))
    _refuse_another_network(loaded, untouched, predicting, ours, folded)
    known = {k: v for k, v in folded.items() if not k.endswith("num_batches_tracked")}
    left_out = tuple(key for key in known if key not in used and (key not in ours or key in misfits))
    names = tuple(classes) if classes is not None else tuple(str(i) for i in range(detector.num_classes))
    return LoadReport(
        source="",
        sha256="",
        key_map="",
        loaded=tuple(loaded),
        left_out=left_out,
        untouched=untouched,
        classes_copied=tuple(name for label, name in enumerate(names) if label in copied),
        classes_new=tuple(name for label, name in enumerate(names) if label not in copied),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRows:
    """How the first dimension of a predicting tensor is made up: G groups of E + C rows.

    Attributes:
        groups: G.
        extra: E; they come first in each group.
        classes: C.
    """

    groups: int
    extra: int
    classes: int

    def copy(
        self,
        mine: Tensor,
        theirs: Tensor,
        source_classes: Sequence[str | None] | None,
        classes: Sequence[str] | None,
    ) -> set[int]:
        """Copies the rows of classes that both have, and the rows of no class; returns the labels that were found."""
        count = theirs.shape[0] // self.groups - self.extra if theirs.ndim else 0
        if theirs.shape != (self.groups * (self.extra + count), *mine.shape[1:]) or count < 1:
            return set()
        pairs = self._pairs(count, source_classes, classes)
        if not pairs:
            return set()
        into = mine.view(self.groups, self.extra + self.classes, *mine.shape[1:])
        source = theirs.reshape(self.groups, self.extra + count, *mine.shape[1:]).to(mine)
        into[:, : self.extra] = source[:, : self.extra]
        for label, row in pairs.items():
            into[:, self.extra + label] = source[:, self.extra + row]
        return set(pairs)

    def _pairs(
        self, count: int, source_classes: Sequence[str | None] | None, classes: Sequence[str] | None
    ) -> dict[int, int]:
        """Which row of theirs each of our labels gets."""
        if source_classes is None or classes is None:
            return {i: i for i in range(count)} if count == self.classes else {}
        if len(source_classes) != count:
            raise WeightsMismatch(f"{count} classes, where {len(source_classes)} names of classes are known")
        row_of = {name.casefold(): row for row, name in enumerate(source_classes) if name is not None}
        return {i: row_of[name.casefold()] for i, name in enumerate(classes) if name.casefold() in row_of}


def class_rows(detector: Detector) -> dict[str, ClassRows]:
    """The tensors of a detector whose first dimension counts classes, found by building it with one class more."""
    spec = detector.spec
    with torch.device("meta"):
        wider = create(replace(spec, num_classes=spec.num_classes + 1)).state_dict()
    found = {}
    for name, tensor in detector.state_dict().items():
        if wider[name].shape == tensor.shape:
            continue
        groups = wider[name].shape[0] - tensor.shape[0]
        extra = tensor.shape[0] // groups - spec.num_classes
        assert tensor.shape[0] == groups * (extra + spec.num_classes), f"{name} has rows that are of no whole group"
        found[name] = ClassRows(groups=groups, extra=extra, classes=spec.num_classes)
    return found


def _rename(state: State, detector: Detector, known: KnownWeights | None) -> tuple[str, Mapping[str, Tensor]]:
    """The state in our names, and the name of the key map."""
    ours = detector.state_dict().keys()
    if sum(key in ours for key in state) * 2 > len(state):
        return "boxmill", state
    names = [known.key_map] if known else [n for n, m in KEY_MAPS.items() if detector.spec.name.startswith(m.families)]
    reasons = []
    for name in names:
        try:
            return name, KEY_MAPS[name].rename(state, detector)
        except WeightsMismatch as error:
            reasons.append(str(error))
    raise WeightsMismatch("; ".join(reasons) or "no key map is known for it")


def _refuse_another_network(
    loaded: Sequence[str], untouched: Sequence[str], predicting: Mapping[str, ClassRows], ours: State, theirs: State
) -> None:
    """A new predicting layer is what is wanted, a new neck may be; a backbone that is half random never is."""
    for key in untouched:
        if key.startswith("backbone."):
            there = f"is {tuple(theirs[key].shape)} there, {tuple(ours[key].shape)} here" if key in theirs else "lacks"
            raise WeightsMismatch(f"{key} {there}")
    if not set(loaded) - predicting.keys():
        raise WeightsMismatch("not one tensor has a name and shape that are known here")
