"""Where the files of a shard lie in a dataset."""

from __future__ import annotations


def shard_stem(path: str) -> str:
    """``part-<hash>`` of an image file, a label file or an index file."""
    return path.rsplit("/", 1)[-1].split(".", 1)[0]


def image_path(stem: str) -> str:
    return f"images/{stem}.parquet"


def index_path(stem: str) -> str:
    # Delta's vacuum leaves folders that begin with an underscore alone.
    return f"images/_index/{stem}.parquet"
