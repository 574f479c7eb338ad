"""What a labelling worker must know, small and picklable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # torch comes with them, which whoever plans and commits does without
    from detectors.test_time import Views
    from detectors.tiling import Tiling

TASKS_AT_ONCE = 2
"""Of one worker: one in the model, the other before or behind it."""

InputKind = Literal["dataset", "archive", "webdataset", "url_list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJob:
    """A planned run as its workers see it.

    Attributes:
        root: URI of the dataset, or of the predictions of images that lie elsewhere.
        label_set, plan_id: of the plan.
        input_kind, input_uri: where the images are.
        splits: of a dataset, those that are labelled; None for all.
        model_uri, model_digest: the model; another one under the same URI is refused.
        categories: of the model's classes in its order, with the prediction set's category ids.
        max_detections, image_size, batch_size, precision: as in ``LabelConfig``.
        thresholds: of each of the categories.
        tiling: how large images are cut, None where they are not.
        views: how often each image is looked at, None for once.
        threads: of the model, and as many decode.
        device: ``cpu`` or ``cuda``.
        max_attempts: at a task.
    """

    root: str
    label_set: str
    plan_id: str
    input_kind: InputKind
    input_uri: str
    splits: tuple[str, ...] | None
    model_uri: str
    model_digest: str
    categories: tuple[Mapping[str, Any], ...]
    thresholds: tuple[float, ...]
    max_detections: int
    image_size: int
    batch_size: int
    precision: Literal["float32", "bfloat16"]
    tiling: Tiling | None
    views: Views | None
    threads: int
    device: str
    max_attempts: int
