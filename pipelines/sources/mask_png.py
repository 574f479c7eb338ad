"""Masks that a PNG draws: every colour or palette index one segment."""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.checks import BadImage
from pipelines.records import Rle
from pipelines.storage import read_uri, redact


def read_mask_png(uri: str, size: tuple[int, int], *, mode: Literal["RGB", "P"]) -> NDArray[np.int64]:
    """The pixels of a PNG: (H, W, 3) colours, or (H, W) palette indices for mode ``P``.

    Args:
        uri: of the PNG.
        size: height and width that it must have, those of its image.
        mode: how to read it; a PNG of grey levels serves as indices too.
    Raises:
        BadImage: no such PNG of this size.
    """
    try:
        content = read_uri(uri)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
                if (opened.height, opened.width) != size:
                    raise BadImage(
                        f"{redact(uri)} has {opened.width}x{opened.height} pixels, its image {size[1]}x{size[0]}"
                    )
                if mode == "P" and opened.mode not in ("P", "L"):
                    raise BadImage(f"{redact(uri)} holds {opened.mode} colours, not the indices of objects")
                return np.asarray(opened.convert("RGB") if mode == "RGB" else opened, np.int64)
    except BadImage:
        raise
    except Exception as error:  # Pillow raises whatever its parsers meet in hostile bytes
        raise BadImage(f"mask PNG {redact(uri)} cannot be read: {type(error).__name__}: {error}") from None


def segment_masks(ids: NDArray[np.int64]) -> dict[int, Rle]:
    """The mask of every id in a (H, W) map, all in one pass over its column-major runs."""
    height, width = ids.shape
    flat = ids.reshape(-1, order="F")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    ends = np.concatenate([starts[1:], [len(flat)]])
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    found = {}
    for runs in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
        # Background and foreground in turn: from the end of one run of this id to the start of its next.
        edges = np.stack([starts[runs], ends[runs]], axis=1).reshape(-1)
        counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
        if counts[-1] == 0:  # the last run is never empty in COCO's own encoder
            counts.pop()
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        found[int(values[runs[0]])] = Rle(size=(height, width), counts=rle["counts"].decode())
    return found
