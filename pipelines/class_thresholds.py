"""Score thresholds by the names of classes, as people give them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pipelines.records import LabelMap


def check_class_names(names: Iterable[str], label_map: LabelMap) -> None:
    """Raises ValueError for the first name that no category has, with the nearest one."""
    for name in sorted(set(names) - set(label_map.names)):
        near = difflib.get_close_matches(name, label_map.names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(label_map.names[:10])}"
        raise ValueError(f"a threshold is given for the class {name!r}, which the predictions have not; {hint}")
