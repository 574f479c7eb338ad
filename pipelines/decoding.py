"""From an encoded image to 8-bit RGB: the one place that decides what becomes of other kinds of pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.checks import BadImage

_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})


def decode_rgb(image: bytes, *, about: int | None = None) -> Image.Image:
    """Decode an image in its stored, unrotated frame.

    Transparency is dropped; of 16 bits a pixel the upper 8 are kept.

    Args:
        image: the encoded bytes.
        about: let a JPEG come out smaller, with its sides no shorter than this many pixels (which is faster);
            None decodes every pixel.
    Raises:
        BadImage: the bytes cannot be decoded, or hold numbers for which black and white are not known.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if about is not None:
                opened.draft("RGB", (about, about))
            if opened.mode in _SIXTEEN_BITS:
                # Pillow's own conversion clips at 255: nearly all of such a picture would be white.
                return Image.fromarray((np.array(opened) >> 8).astype(np.uint8)).convert("RGB")
            if opened.mode in ("I", "F"):
                raise BadImage(f"has pixels of 32 bits (mode {opened.mode}), of which black and white are not known")
            return opened.convert("RGB")
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet in hostile bytes
        raise BadImage(f"cannot be decoded: {type(error).__name__}: {error}") from error
