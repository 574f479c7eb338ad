"""Everything that runs on Ray: ingest, train, label, evaluate.

The four functions are the public API. They are loaded when first asked for, because torch, Ray and pyarrow take
seconds to import and ``boxmill --help`` must not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.evaluate import evaluate as evaluate
    from workers.ingest import ingest as ingest
    from workers.label import label as label
    from workers.train import train as train

__all__ = ["evaluate", "ingest", "label", "train"]


def __getattr__(name: str) -> Any:
    # The functions are named like their modules, so `import workers.train` alone would leave the module here:
    # whoever wants the module writes `from workers.train import ...`, which does not look here at all.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(import_module(f"{__name__}.{name}"), name)
    globals()[name] = function
    return function
