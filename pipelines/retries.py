"""What a store may refuse for a moment, and what it means when it does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def retrying(action: Callable[[], T], where: str = "", attempts: int = 4) -> T:
    """Cut bodies, wrong checksums, resets and 503s are retried; what is missing, forbidden or invalid is not."""
    for attempt in range(attempts):
        try:
            return action()
        except (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:
            # botocore's own errors are no OSErrors. Of these s3fs has retried all but a body's wrong checksum.
            foreign = type(error).__module__.partition(".")[0] == "botocore"
            damaged = type(error).__name__ == "FlexibleChecksumError"
            if not isinstance(error, OSError) and not foreign:
                raise
            if attempt == attempts - 1 or (foreign and not damaged):
                if foreign:
                    why = f"arrives damaged, {attempts} times in a row" if damaged else "cannot be reached"
                    raise OSError(f"{where} {why}: {error}") from error
                raise
            wait_a_little(attempt)
    raise AssertionError("unreachable")


def is_refused(error: OSError) -> bool:
    """Whether a conditional PUT found the file there: a 412 without a message is no FileExistsError to s3fs."""
    response = getattr(error.__cause__, "response", None) or {}
    return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412)


def wait_a_little(attempt: int) -> None:
    """Longer with each attempt, and never in step with others."""
    time.sleep(min(0.05 * 2**attempt, 2.0) * (0.5 + random.random()))
