"""The interface that every detector keeps, and how its input is prepared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from detectors.structures import Batch, Prediction, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How pixels become a model's input: x = (pixel - mean) / std on RGB in 0..255.

    Attributes:
        mean, std: three numbers each, in units of 0..255.
        size: the longer side of the resized image, pixels.
        divisor: height and width of the padded batch are multiples of this.
        resize: ``fit`` keeps the aspect ratio, so that the shorter side follows; ``stretch`` makes every image
            size x size, for networks of one fixed input (SSD, YOLO v1).
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    divisor: int
    resize: Literal["fit", "stretch"] = "fit"

    def to_json(self) -> dict[str, Any]:
        # Models and plans from before there was a choice keep their digests.
        values = asdict(self)
        return values if self.resize != "fit" else {k: v for k, v in values.items() if k != "resize"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocessing:
        return cls(
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            size=values["size"],
            divisor=values["divisor"],
            resize=values.get("resize", "fit"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSpec:
    """What rebuilds a detector, weights apart.

    Attributes:
        name: in the catalog, or ``package.module:factory``.
        num_classes: C, labels are 0..C-1.
        options: all of them, JSON-ready, so that later defaults change nothing.
    """

    name: str
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "num_classes": self.num_classes, "options": dict(self.options)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DetectorSpec:
        return cls(name=str(values["name"]), num_classes=int(values["num_classes"]), options=dict(values["options"]))


class Detector(nn.Module, ABC):
    """A detector: ``losses`` to learn, ``predict`` to use.

    ``forward`` dispatches on whether targets are given, never on ``self.training``, because DDP synchronises
    gradients only through ``forward``.
    """

    network: ClassVar[tuple[str, ...]] = ("dense",)
    """Names of the methods from tensors to tensors that hold the arithmetic: what ``optimize`` compiles and casts."""

    spec: DetectorSpec
    preprocessing: Preprocessing
    num_classes: int
    needs: frozenset[str] = frozenset()
    """What ``losses`` wants of a target beside boxes and labels: of ``masks`` and ``keypoints``, those it learns.

    A class may say it, or an instance whose options decide. Whoever reads a dataset decodes nothing else.
    """
    selection: Any = None
    """Which detections it reports, a ``DenseSelection`` or ``BoxSelection``; None where it chooses in another way."""
    loaded_weights: Mapping[str, Any] | None = None
    """Which file the first weights came from and what of it was used; part of a saved model's provenance."""

    def classifier_layers(self) -> Mapping[str, str]:
        """Layers that start from the fully connected ones of the backbone's classifier: their names there and here."""
        return {}

    @abstractmethod
    def losses(self, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """Scalar losses by name, each already weighted; their sum is what is minimised."""

    @abstractmethod
    def predict(self, batch: Batch) -> list[Prediction]:
        """One prediction an image, boxes in original pixels."""

    def arithmetic(self, images: Tensor) -> object:
        """Runs all arithmetic of predicting (B, 3, H, W) images, for counting it.

        Called on shapes alone (the meta device), so nothing here may depend on values: a detector in several stages
        overrides it and gives the later ones as many regions as it takes at most.

        Raises:
            ValueError: the network is several methods, and the detector does not say how they follow each other.
        """
        if len(self.network) != 1:
            raise ValueError(f"{type(self).__name__}'s network is {', '.join(self.network)}; only one can be run")
        return getattr(self, self.network[0])(images)

    def forward(self, batch: Batch, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        return self.predict(batch) if targets is None else self.losses(batch, targets)
