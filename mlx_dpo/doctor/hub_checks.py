"""Checks of the Hugging Face Hub: whether it can be reached, and whether this machine is logged in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from mlx_dpo.doctor.check import CheckOutcome, passed, skipped, warned
from mlx_dpo.errors import UserError
from mlx_dpo.utils.hub_client import (
    LOGIN_HINT,
    hub_api,
    hub_description,
    is_logged_in,
    quiet_hub,
    translate_hub_errors,
)

T = TypeVar("T")
REACH_TIMEOUT = 3.0  # seconds for the connection and for each answer
WAIT_TIMEOUT = 5.0  # seconds altogether: a name server may be silent for longer
_OFFLINE = "HF_HUB_OFFLINE is set: nothing is downloaded"


class HubChecks:
    """The checks; the second one uses what the first one found."""

    def __init__(self, *, shows_user: bool = True) -> None:
        """Ask nothing yet.

        Args:
            shows_user: whether the outcome may name the user who is logged in.
        """
        self.shows_user = shows_user

    def check_reach(self) -> CheckOutcome:
        """Whether the Hub answers, within `REACH_TIMEOUT`."""
        from huggingface_hub import is_offline_mode

        if is_offline_mode():
            return skipped(_OFFLINE)
        if self._problem is not None:
            return warned(
                self._problem,
                "Models and data in local folders can be used without it. Else check the connection and the proxy "
                "(HTTPS_PROXY), or name a mirror with HF_ENDPOINT.",
            )
        return passed(f"{hub_description()} answers")

    def check_login(self) -> CheckOutcome:
        """Whether there is a token that the Hub accepts; public models can be used without one."""
        from huggingface_hub import is_offline_mode

        if not is_logged_in():
            return warned("not logged in, which gated models and `mlx-dpo push` need", LOGIN_HINT)
        if is_offline_mode() or self._problem is not None:
            return passed("logged in; the token was not tried")
        try:
            user = _within(WAIT_TIMEOUT, _request_user)
        except TimeoutError:
            return warned("logged in; the Hub took too long to try the token")
        except UserError as error:
            return warned(error.message, error.hint)
        return passed(f"logged in as {user}" if self.shows_user else "logged in")

    @cached_property
    def _problem(self) -> str | None:
        """Why the Hub does not answer; None if it does."""
        try:
            _within(WAIT_TIMEOUT, _request_head)
        except TimeoutError:
            return f"{hub_description()} does not answer"
        except UserError as error:
            return error.message
        return None


def _request_head() -> None:
    """Ask the Hub for the headers of its first page. Any answer will do. Raises `UserError`."""
    from huggingface_hub import constants, get_session

    with quiet_hub(), translate_hub_errors("the Hub"):
        get_session().head(constants.ENDPOINT, timeout=REACH_TIMEOUT)


def _request_user() -> str:
    """Ask the Hub for the name of the user whose token this machine has. Raises `UserError`."""
    with quiet_hub(), translate_hub_errors("the login", writing=True):
        return str(hub_api().whoami()["name"])


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that is waited for so long; where it blocks, Ctrl-C still ends the process.

    Raises:
        TimeoutError: it took longer. It runs on in a thread that ends with the process.
        Exception: what the call raised.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
