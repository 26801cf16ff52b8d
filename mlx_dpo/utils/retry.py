"""Retry calls that fail for a transient reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

T = TypeVar("T")


def retry(
    call: Callable[[], T],
    is_transient: Callable[[Exception], bool],
    *,
    attempts: int,
    first_delay: float,
    longest_delay: float = float("inf"),
    retry_after: Callable[[Exception], float | None] = lambda error: None,
    on_retry: Callable[[Exception, float], None] = lambda error, delay: None,
    jitter: Callable[[], float] = lambda: 0.0,
) -> T:
    """Call until it succeeds, with delays that double.

    Args:
        call: a function without arguments.
        is_transient: whether an exception is worth another attempt.
        attempts: largest number of calls.
        first_delay: seconds before the second attempt.
        longest_delay: seconds; a longer delay is shortened to this.
        retry_after: seconds that the failed server asks to wait, instead of the doubling delay; None if it doesn't.
        on_retry: receives the exception and the delay before each further attempt.
        jitter: a share of the delay to add to it, so that several callers don't come back at once.

    Returns:
        What the call returns.

    Raises:
        Exception: the call's own, of the last attempt or the first that is not transient.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Exception as error:
            if attempt == attempts or not is_transient(error):
                raise
            requested = retry_after(error)
            delay = first_delay * 2 ** (attempt - 1) * (1 + jitter()) if requested is None else requested
            delay = min(delay, longest_delay)
            on_retry(error, delay)
            time.sleep(delay)
    raise ValueError("attempts must be at least 1")


def retry_after_seconds(error: Exception) -> float | None:
    """Seconds that a server asks to wait, by the Retry-After header of an HTTP error: a number, or a date.

    Args:
        error: of any HTTP client that puts the `response` on its errors.

    Returns:
        The seconds, at least 0; None without a readable header.
    """
    value = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
