"""Weights into a detector: a released file's, or another model's, whole or as far as they fit.

The layers that predict have rows for classes. They are copied category by category, by name, so that weights of one
label map start a detector of another; what was and what was not loaded is reported.

Shape legend: C classes of the detector, K classes of the weights, G groups of rows (anchors, mostly), E rows of each
group that are for no class (a background, coordinates).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from detectors.base import Detector, DetectorSpec
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
from detectors.keymaps_darknet import VALUES, darknet_to_yolo_v3, read_darknet
from detectors.keymaps_effdet import effdet_efficientdet
from detectors.keymaps_rcnn import torchvision_rcnn
from detectors.keymaps_ssd import torchvision_ssd
from detectors.models.efficientdet import EfficientDet
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


def _effdet(state: State, detector: Detector) -> Mapping[str, Tensor]:
    if not isinstance(detector, EfficientDet):
        raise WeightsMismatch(f"{type(detector).__name__} is no EfficientDet")
    return effdet_efficientdet(state, num_anchors=detector.grid.num_anchors)


def _darknet(state: State, detector: Detector) -> Mapping[str, Tensor]:
    if state.keys() != {VALUES}:
        raise WeightsMismatch("it is no file of darknet's")
    return darknet_to_yolo_v3(state[VALUES], detector)


# Classes are taken out and put in order here, for all families alike, so that the maps keep all of them.
KEY_MAPS: dict[str, KeyMap] = {
    "torchvision_retinanet": KeyMap(
        rename=lambda state, _: torchvision_retinanet(state, num_anchors=1), families=("retinanet_",)
    ),
    "torchvision_ssd": KeyMap(rename=lambda state, _: torchvision_ssd(state, num_boxes=()), families=("ssd300_",)),
    "torchvision_rcnn": KeyMap(
        rename=lambda state, _: torchvision_rcnn(state), families=("faster_rcnn_", "mask_rcnn_", "keypoint_rcnn_")
    ),
    "effdet_efficientdet": KeyMap(rename=_effdet, families=("efficientdet_",)),
    "darknet_to_yolo_v3": KeyMap(rename=_darknet, families=("yolo_v3_",)),
}


def _read(path: Path) -> dict[str, Tensor]:
    """Darknet's files are told by their names: ``.weights`` and, cut off behind a layer, ``.conv.74``."""
    if path.suffix == ".weights" or re.search(r"\.conv\.\d+$", path.name):
        return read_darknet(path)[1]
    return read_weights(path)


def load_weights(
    detector: Detector,
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    rows: Callable[[int], Sequence[str | None]] | None = None,
    backbone_alone: bool = False,
) -> LoadReport:
    """Loads a file of released weights into a detector, or into its backbone where they are a backbone's.

    Args:
        detector: in place.
        path: .pt, .pth, .bin or .safetensors, in our names or in those of a network that a key map knows; or a file
            of darknet's.
        classes: names of the detector's labels, in order.
        rows: from how many classes the weights have to their names, in order, None for one that is unused. Without
            it known weights have their own, and those of others are taken to be the detector's if there are as many.
        backbone_alone: whatever else is in the file is left out.
    Raises:
        ValueError: the file is unreadable.
        WeightsMismatch: it holds the weights of another network.
    """
    state = _read(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known = find_by_digest(digest)
    of_backbone = backbone_alone or (known is not None and known.trained_on == "imagenet")
    if of_backbone and VALUES not in state:
        return replace(load_backbone_weights(detector, path), checked=known is not None)
    try:
        key_map, named = _rename(state, detector, known)
        if of_backbone:
            named = {key: value for key, value in named.items() if key.startswith("backbone.")}
        source_classes = known.rows if known is not None and known.rows else None
        if rows is not None and (count := count_classes(detector, named)):
            source_classes = rows(count)
        report = load_state(
            detector,
            named,
            source_classes=source_classes,
            classes=classes,
            norm_eps=known.norm_eps if known else None,
        )
    except WeightsMismatch as whole:
        if VALUES in state:
            raise WeightsMismatch(f"{path} does not hold the weights of {detector.spec.name}: {whole}") from None
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
    folded, used = fold_norms(detector, state, norm_eps=norm_eps, partial=True)
    ours = {k: v for k, v in detector.state_dict().items() if not k.endswith("num_batches_tracked")}
    predicting = class_rows(detector)
    copied: set[int] = set()
    loaded: list[str] = []
    misfits: list[str] = []
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
    classes = detector.spec.num_classes
    wider = _shapes_with_one_class_more(json.dumps(detector.spec.to_json()))
    found = {}
    for name, tensor in detector.state_dict().items():
        if wider[name] == tensor.shape:
            continue
        groups = wider[name][0] - tensor.shape[0]
        extra = tensor.shape[0] // groups - classes
        assert tensor.shape[0] == groups * (extra + classes), f"{name} has rows that are of no whole group"
        found[name] = ClassRows(groups=groups, extra=extra, classes=classes)
    return found


@lru_cache(maxsize=8)
def _shapes_with_one_class_more(spec: str) -> dict[str, torch.Size]:
    one_more = DetectorSpec.from_json(json.loads(spec))
    with torch.device("meta"):
        detector = create(replace(one_more, num_classes=one_more.num_classes + 1))
    return {name: tensor.shape for name, tensor in detector.state_dict().items()}


def count_classes(detector: Detector, state: State) -> int:
    """How many classes the predicting layers of another detector's tensors have, in our names; 0 without such."""
    for key, rows in class_rows(detector).items():
        if key in state:
            return state[key].shape[0] // rows.groups - rows.extra
    return 0


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
