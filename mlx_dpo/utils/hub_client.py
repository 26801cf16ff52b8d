"""The Hugging Face Hub: repository names, the client, and its errors as one-sentence `UserError`s."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from mlx_dpo.errors import UserError, Where

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN_HINT = "Log in with `hf auth login`, or set HF_TOKEN to a token from https://huggingface.co/settings/tokens."
REQUEST_TIMEOUT = 120.0  # seconds without a byte; huggingface_hub's own uploads have no timeout
_NOT_LOGGED_IN = "you are not logged in to the Hugging Face Hub"
_NAME = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@\s]+))?(?::(?P<config_and_split>[^:@\s]+))?")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
_CREDENTIALS = re.compile(r"(?<=//)[^/@:\s]*:[^/@\s]+@")  # user:password@


@dataclass(frozen=True)
class HubRepoRef:
    """A Hub repository as a user types it: `user/name`, `user/name@revision` or `user/name@revision:config/split`.

    Attributes:
        repo_id: `user/name`.
        revision: branch, tag or commit; None for the default branch.
        config_and_split: `config/split` or `split` of a dataset.
    """

    repo_id: str
    revision: str | None = None
    config_and_split: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubRepoRef | None:
        """Split a name into its parts; None if it can't be a Hub name."""
        match = _NAME.fullmatch(name)
        if not match or any(part.startswith(".") for part in match["repo_id"].split("/")):
            return None
        return cls(**match.groupdict())


def without_revision(model: str) -> str:
    """A model name for commands that don't accept `@revision`, as mlx_lm's don't; folders stay as they are."""
    repo = None if Path(model).exists() else HubRepoRef.parse(model)
    return repo.repo_id if repo else model


def hub_api() -> HfApi:
    """huggingface_hub's client with our user agent, a timeout for every request, and no secrets in its log."""
    from importlib.metadata import version

    from huggingface_hub import HfApi, get_session

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_redact_log_record)
    session = get_session()
    if _add_timeout not in (hooks := session.event_hooks)["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _add_timeout]}
    return HfApi(library_name="mlx-dpo", library_version=version("mlx-dpo"))


def _add_timeout(request: Any) -> None:
    """Give a request `REQUEST_TIMEOUT` where huggingface_hub sets no limit."""
    limits = request.extensions.get("timeout") or {}
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: limits.get(kind) or REQUEST_TIMEOUT for kind in kinds}


def _redact_log_record(record: logging.LogRecord) -> bool:
    """A log filter for huggingface_hub's messages, which contain addresses."""
    record.msg, record.args = redact_secrets(record.getMessage()), None
    return True


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Disable huggingface_hub's progress bars and warnings, for small requests."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    were_disabled, level = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not were_disabled:
            enable_progress_bars()


def is_logged_in() -> bool:
    """Whether there is a Hub token on this machine that can be read."""
    return _token() is not None


def _token() -> str | None:
    from huggingface_hub import get_token

    try:
        return get_token()
    except (OSError, UnicodeDecodeError):  # its file can't be read, or a folder above it is a file
        return None


def require_login() -> None:
    """Check that there is a Hub token.

    Raises:
        UserError: there is none.
    """
    if not is_logged_in():
        raise UserError(_NOT_LOGGED_IN, hint=LOGIN_HINT)


def redact_secrets(text: str) -> str:
    """A text without Hub tokens and without passwords in addresses."""
    token = _token()
    text = text.replace(token, "hf_***") if token else text
    return _CREDENTIALS.sub("", _TOKEN.sub("hf_***", text))


def read_card_metadata(card: Path) -> dict[str, Any]:
    """The YAML metadata at the top of a model or dataset card; empty if there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def hub_description() -> str:
    """The Hub's name for messages, with its address if HF_ENDPOINT points to another."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
    return "the Hugging Face Hub" if host == "huggingface.co" else f"the Hub at {host} (HF_ENDPOINT)"


@contextmanager
def translate_hub_errors(name: str, *, writing: bool = False, prefix: str = "") -> Iterator[None]:
    """Turn every failure of huggingface_hub inside into a `UserError` of one sentence, without secrets.

    Args:
        name: the repository, as the user typed it.
        writing: whether something is being uploaded.
        prefix: how the message begins, where the name may have been meant for something else, such as a folder.

    Raises:
        UserError: a request failed, or a local file can't be read or written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        translated = _translate(error, name, writing)
        if translated is None:
            raise
        if not _is_local(error):
            translated = UserError(prefix + translated.message, where=translated.where, hint=translated.hint)
        raise translated from None  # the original may contain addresses and headers


def is_transient_hub_error(error: BaseException) -> bool:
    """Whether a failure may be gone at the next attempt: of the network or the server, or a conflict."""
    for cause in _cause_chain(error):
        status = status_code(cause)
        if status is not None:
            return status in (408, 409, 412, 429) or status >= 500
        if _is_network_error(cause):
            return True
    return False


def retry_after_seconds(error: BaseException) -> float | None:
    """The seconds that the server asks to wait before the next attempt; None if it doesn't."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    value = str(headers.get("Retry-After", ""))
    return float(value) if value.isdigit() else None


def status_code(error: BaseException) -> int | None:
    """The HTTP status of the response that an error was raised for; None if there was no response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _cause_chain(error: BaseException | None) -> Iterator[BaseException]:
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_network_error(error: BaseException) -> bool:
    """By class name, since huggingface_hub uses httpx or httpx2, depending on its version."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"TransportError", "JSONDecodeError"})  # the latter: the response is not from a Hub


def _is_local(error: BaseException) -> bool:
    """Whether the failure is this machine's, such as a full disk or an unreadable file."""
    return isinstance(error, OSError) and error.errno is not None


def _translate(error: Exception, name: str, writing: bool) -> UserError | None:
    from huggingface_hub import errors

    where = Where(name)
    for cause in _cause_chain(error):
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return UserError(_NOT_LOGGED_IN, where=where, hint=LOGIN_HINT)
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return _offline(name, writing)
        if isinstance(cause, errors.HFValidationError):
            return UserError("not a valid name on the Hub; names look like user/name", where=where)
        if isinstance(cause, errors.HfHubHTTPError):
            return _translate_response(cause, name, writing)
        if _is_network_error(cause):
            hint = "Check the connection; with HF_HUB_OFFLINE=1 only files that are already downloaded are used."
            timed_out = any(cls.__name__ == "TimeoutException" for cls in type(cause).__mro__)
            problem = "does not answer" if timed_out else "can't be reached"
            return UserError(f"{hub_description()} {problem}", where=where, hint=None if writing else hint)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _offline(name, writing)
    if _is_local(error):
        return UserError(str(error), where=where)
    if isinstance(error, (OSError, ValueError, RuntimeError)):  # errors of xet, unsafe file names
        lines = redact_secrets(str(error).strip()).splitlines() or [type(error).__name__]
        return UserError(f"{hub_description()}: {' '.join(lines)[:400]}", where=where)
    return None


def _offline(name: str, writing: bool) -> UserError:
    hint = "Unset HF_HUB_OFFLINE to go online."
    if writing:
        return UserError("HF_HUB_OFFLINE is set, so nothing is uploaded", where=Where(name), hint=hint)
    return UserError("not downloaded yet, and HF_HUB_OFFLINE forbids downloads", where=Where(name), hint=hint)


def _translate_response(error: Any, name: str, writing: bool) -> UserError:
    from huggingface_hub import errors

    hub, status, repo = hub_description(), status_code(error) or 0, HubRepoRef.parse(name)
    hint: str | None = None
    server_message = redact_secrets(" ".join((getattr(error, "server_message", None) or "").split()))[:300]
    details = f": {server_message}" if server_message else ""
    if isinstance(error, errors.GatedRepoError):
        kind = "datasets/" if getattr(error, "repo_type", None) == "dataset" else ""
        message = "it is gated: its owner grants access on request"
        hint = f"Request access on {_hub_address()}/{kind}{repo.repo_id if repo else name}. {LOGIN_HINT}"
    elif isinstance(error, errors.RevisionNotFoundError):
        message = f"it has no revision `{(repo.revision if repo else None) or 'main'}`"
    elif isinstance(error, errors.EntryNotFoundError):
        message = "a file of the repository is missing"
    elif status == 401 and is_logged_in() and (writing or "credentials" in str(error)):
        message, hint = f"{hub} does not accept your token", f"It may have expired. {LOGIN_HINT}"
    elif status == 401 and writing:
        message, hint = _NOT_LOGGED_IN, LOGIN_HINT
    elif status in (401, 404):
        message = f"{hub} has no repository of this name, or it is private"
        hint = "Check the name." if is_logged_in() else f"Check the name. {LOGIN_HINT}"
    elif status == 403:
        message = f"your token may not {'write' if writing else 'read'} there{details}"
        hint = "Use a token with write permission, and a name of your own or of your organisation." if writing else None
    elif status in (409, 412):
        message, hint = f"somebody else is changing it right now{details}", "Try again."
    elif status == 429:
        message = f"{hub} accepts no more requests from you for now (429)"
        seconds = retry_after_seconds(error)
        hint = f"Wait {seconds:.0f} s and try again." if seconds else "Wait a few minutes and try again."
    elif status >= 500:
        message = f"{hub} reports a server error (status {status})"
        hint = "Try again later; https://status.huggingface.co lists outages."
    else:
        message = f"{hub} refuses the request (status {status}){details}"
    return UserError(message, where=Where(name), hint=hint)


def _hub_address() -> str:
    from huggingface_hub import constants

    return _CREDENTIALS.sub("", constants.ENDPOINT)
