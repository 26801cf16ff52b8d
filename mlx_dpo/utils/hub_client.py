"""The Hugging Face Hub: how its repositories are named here, and every way it can fail as one sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlx_dpo.errors import UserError, Where

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN_HINT = "Log in with `hf auth login`, or set HF_TOKEN to a token from https://huggingface.co/settings/tokens."
TIMEOUT = 120.0  # seconds without a byte; huggingface_hub's own uploads would wait for ever
_NAME = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@\s]+))?(?::(?P<part>[^:@\s]+))?")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
_CREDENTIALS = re.compile(r"(?<=//)[^/@:\s]*:[^/@\s]+@")  # user:password@


@dataclass(frozen=True)
class HubRepoRef:
    """A repository as it is typed: `user/name`, `user/name@revision`, of a data set `user/name@revision:config/split`.

    Attributes:
        part: what stands behind the colon.
    """

    repo_id: str
    revision: str | None = None
    part: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubRepoRef | None:
        """The name in its parts, or None where it can't be one of the Hub's."""
        match = _NAME.fullmatch(name)
        if not match or any(part.startswith(".") for part in match["repo_id"].split("/")):
            return None
        return cls(**match.groupdict())


def without_revision(model: str) -> str:
    """A model's name as other programs take it: without a revision, which mlx_lm's have no way to say."""
    repo = None if Path(model).exists() else HubRepoRef.parse(model)
    return repo.repo_id if repo else model


def hub_api() -> HfApi:
    """huggingface_hub's client, under our name and with a limit to waiting."""
    from huggingface_hub import HfApi, get_session

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_say_no_secrets)
    session = get_session()
    if _never_wait_for_ever not in (hooks := session.event_hooks)["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _never_wait_for_ever]}
    return HfApi(library_name="mlx-dpo", library_version=version("mlx-dpo"))


def _never_wait_for_ever(request: Any) -> None:
    """A request without limits gets ours; many of huggingface_hub's say that they want none."""
    limits = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {kind: limits.get(kind) or TIMEOUT for kind in ("connect", "read", "write", "pool")}


def _say_no_secrets(record: logging.LogRecord) -> bool:
    """For huggingface_hub's log, which names addresses."""
    record.msg, record.args = redact_secrets(record.getMessage()), None
    return True


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without huggingface_hub's bars and warnings inside, for what is small."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    were_off, level = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not were_off:
            enable_progress_bars()


def is_logged_in() -> bool:
    """Whether somebody is logged in."""
    from huggingface_hub import get_token

    return get_token() is not None


def redact_secrets(text: str) -> str:
    """A text with tokens, and passwords in addresses, taken out."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "hf_***") if token else text
    return _CREDENTIALS.sub("", _TOKEN.sub("hf_***", text))


def hub_description() -> str:
    """What to call the Hub: by its address where HF_ENDPOINT names another."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
    return "the Hugging Face Hub" if host == "huggingface.co" else f"the Hub at {host} (HF_ENDPOINT)"


@contextmanager
def translate_hub_errors(name: str, *, writing: bool = False, prefix: str = "") -> Iterator[None]:
    """Whatever goes wrong with a repository inside is said as a `UserError` of one sentence, without any secret.

    before: how the sentence begins, where the name might have been meant for something else.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = _said(error, name, writing)
        if said is None:
            raise
        if not _is_local(error):
            said = UserError(prefix + said.message, where=said.where, hint=said.hint)
        raise said from None  # what is behind it may hold addresses and headers


def is_transient_hub_error(error: BaseException) -> bool:
    """Whether a failure is one that may be gone at the next try: the network's, the server's, a conflict."""
    for one in _causes(error):
        status = _status(one)
        if status is not None:
            return status in (408, 409, 412, 429) or status >= 500
        if _is_network(one):
            return True
    return False


def retry_after_seconds(error: BaseException) -> float | None:
    """The seconds that a server asks to wait, where it does."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    value = str(headers.get("Retry-After", ""))
    return float(value) if value.isdigit() else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_network(error: BaseException) -> bool:
    """By name, since huggingface_hub speaks through httpx or httpx2, whichever its version brings."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"TransportError", "JSONDecodeError"})  # the latter: an answer that is no answer


def _is_local(error: BaseException) -> bool:
    """Whether it is this machine's: a full disk, a file that may not be read."""
    return isinstance(error, OSError) and error.errno is not None


def _said(error: Exception, name: str, writing: bool) -> UserError | None:
    from huggingface_hub import errors

    for one in _causes(error):
        if isinstance(one, errors.LocalTokenNotFoundError):
            return UserError("you are not logged in to the Hugging Face Hub", where=Where(name), hint=LOGIN_HINT)
        if isinstance(one, errors.OfflineModeIsEnabled):
            return _offline(name, writing)
        if isinstance(one, errors.HFValidationError):
            return UserError("it is not a name the Hub has; names are like user/name", where=Where(name))
        if isinstance(one, errors.HfHubHTTPError):
            return _refused(one, name, writing)
        if _is_network(one):
            hint = "Check the connection; HF_HUB_OFFLINE=1 keeps to what is downloaded already."
            slow = any(cls.__name__ == "TimeoutException" for cls in type(one).__mro__)
            what = "does not answer" if slow else "can't be reached"
            return UserError(f"{hub_description()} {what}", where=Where(name), hint=None if writing else hint)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _offline(name, writing)
    if _is_local(error):
        return UserError(str(error), where=Where(name))
    if isinstance(error, (OSError, ValueError, RuntimeError)):  # xet's own failures, names that leave
        reason = redact_secrets(str(error).strip()).splitlines() or [type(error).__name__]
        return UserError(f"{hub_description()}: {' '.join(reason)[:400]}", where=Where(name))
    return None


def _offline(name: str, writing: bool) -> UserError:
    hint = "Unset HF_HUB_OFFLINE to go online."
    if writing:
        return UserError("HF_HUB_OFFLINE is set, so nothing is sent", where=Where(name), hint=hint)
    message = "it is not among what was downloaded from the Hub before, which HF_HUB_OFFLINE keeps to"
    return UserError(message, where=Where(name), hint=hint)


def _refused(error: Any, name: str, writing: bool) -> UserError:
    from huggingface_hub import errors

    where, status = Where(name), _status(error) or 0
    repo = HubRepoRef.parse(name)
    revision = (repo.revision if repo else None) or "main"
    if isinstance(error, errors.GatedRepoError):
        kind = "datasets/" if getattr(error, "repo_type", None) == "dataset" else ""
        hint = f"Ask for access on {_address()}/{kind}{repo.repo_id if repo else name}. {LOGIN_HINT}"
        return UserError("it is gated: its owner gives access by request", where=where, hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"it has no revision `{revision}`", where=where)
    if isinstance(error, errors.EntryNotFoundError):
        return UserError("a file that it was to have is not there", where=where)
    if status == 401 and is_logged_in() and (writing or "credentials" in str(error)):
        return UserError(
            f"{hub_description()} does not accept your token", where=where, hint=f"It may be old. {LOGIN_HINT}"
        )
    if status == 401 and writing:
        return UserError("you are not logged in to the Hugging Face Hub", where=where, hint=LOGIN_HINT)
    if status in (401, 404):
        hint = "Check the name." if is_logged_in() else f"Check the name. {LOGIN_HINT}"
        return UserError(f"{hub_description()} has none of this name, or it is private", where=where, hint=hint)
    said = redact_secrets(" ".join((getattr(error, "server_message", None) or "").split()))[:300]
    because = f": {said}" if said else ""
    if status == 403:
        hint = "Take a token with the right to write, and a name below your own or your organisation's."
        verb = "write" if writing else "read"
        return UserError(f"your token may not {verb} there{because}", where=where, hint=hint if writing else None)
    if status in (409, 412):
        return UserError(f"it is being changed by somebody else right now{because}", where=where, hint="Try again.")
    if status == 429:
        wait = retry_after_seconds(error)
        hint = f"Wait {wait:.0f} s and try again." if wait else "Wait some minutes and try again."
        return UserError(f"{hub_description()} takes no more requests from you for now (429)", where=where, hint=hint)
    if status >= 500:
        hint = "Try again later; https://status.huggingface.co tells of troubles."
        return UserError(f"{hub_description()} is in trouble (it answers {status})", where=where, hint=hint)
    return UserError(f"{hub_description()} refuses ({status}){because}", where=where)


def _address() -> str:
    from huggingface_hub import constants

    return _CREDENTIALS.sub("", constants.ENDPOINT)
