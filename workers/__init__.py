"""Everything that runs on Ray: ingest, train, label, evaluate.

The four functions are the public API. They are loaded when first asked for, because torch, Ray and pyarrow take
seconds to import and ``boxmill --help`` must not.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.evaluate import evaluate as evaluate
    from workers.ingest import ingest as ingest
    from workers.label import label as label
    from workers.train import train as train

__all__ = ["evaluate", "ingest", "label", "train"]


class _Workers(ModuleType):
    """This package with its functions in front of the modules of the same names.

    Importing ``workers.train`` sets the attribute ``train`` of this package to the module, and ``from workers import
    train`` would then give that. A property of the class comes before attributes, and its setter lets the module go.
    (``from workers.train import TrainConfig`` goes by ``sys.modules`` and is not concerned.)
    """


def _function(name: str) -> property:
    def get(package: ModuleType) -> Any:
        return getattr(import_module(f"{__name__}.{name}"), name)

    return property(get, lambda package, module: None)


for _name in __all__:
    setattr(_Workers, _name, _function(_name))
sys.modules[__name__].__class__ = _Workers
