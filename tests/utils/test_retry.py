"""Retries: which failures are tried again, how often, and after which delays."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from mlx_dpo.utils.retry import retry, retry_after_seconds


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


class Flaky:
    """Fails with the given exceptions, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.calls = list(failures), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def is_os_error(error: Exception) -> bool:
    return isinstance(error, OSError)


def test_delays_double_up_to_the_longest(delays: list[float]) -> None:
    call = Flaky(*[OSError()] * 4)
    assert retry(call, is_os_error, attempts=5, first_delay=1, longest_delay=5) == "done"
    assert delays == [1, 2, 4, 5]


def test_the_server_may_name_the_delay(delays: list[float]) -> None:
    retry(Flaky(OSError(), OSError()), is_os_error, attempts=3, first_delay=1, retry_after=lambda error: 7.0)
    assert delays == [7, 7]


def test_a_lasting_failure_is_not_tried_again(delays: list[float]) -> None:
    call = Flaky(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        retry(call, is_os_error, attempts=5, first_delay=1)
    assert call.calls == 1 and not delays


def test_the_last_failure_is_raised(delays: list[float]) -> None:
    call = Flaky(*[OSError(str(i)) for i in range(9)])
    with pytest.raises(OSError, match="2"):
        retry(call, is_os_error, attempts=3, first_delay=1)
    assert call.calls == 3 and delays == [1, 2]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2.5", 2.5), ("-1", 0), ("soon", None), ("", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_a_retry_after_header_is_a_number_or_a_date(header: str, seconds: float | None) -> None:
    error = OSError()
    error.response = SimpleNamespace(headers={"Retry-After": header})  # type: ignore[attr-defined]
    assert retry_after_seconds(error) == seconds and retry_after_seconds(OSError()) is None
