"""`push`: an adapter run or a model onto the Hub, as one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.card.model_card import render_card_files
from mlx_dpo.export.push.upload_files import UploadFile, select_upload_files, shareable_content
from mlx_dpo.utils.hub_client import (
    LOGIN_HINT,
    HubRepoRef,
    hub_api,
    is_logged_in,
    is_transient_hub_error,
    redact_secrets,
    retry_after_seconds,
    translate_hub_errors,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

MAX_ATTEMPTS = 3  # of what huggingface_hub asks once only; the upload of a file has its own
FIRST_RETRY_DELAY = 2.0  # seconds before the second; doubled for each further one
MAX_RETRY_DELAY = 300.0  # seconds that a server may ask for
DEFAULT_COMMIT_MESSAGE = "Upload with mlx-dpo"
CHECKPOINT_BRANCH = "checkpoints"  # the branch that checkpoints go to, and their folder there

MessageCallback = Callable[[str], None]


@dataclass(frozen=True)
class PushResult:
    """Where it went.

    Attributes:
        url: the repository's page, or the branch's.
        commit: the commit that holds it.
        files: what was sent, or was there already.
    """

    repo_id: str
    url: str
    commit: str
    private: bool
    files: list[UploadFile]


def check_push_allowed(repo_id: str | None) -> None:
    """What can be known before anything is sent: somebody is logged in, and the name is one. Raises `UserError`."""
    name = None if repo_id is None else HubRepoRef.parse(repo_id)
    if repo_id is not None and (name is None or name.revision or name.part):
        raise UserError("is not a name for a repository; names are like user/name", where=Where(repo_id))
    if not is_logged_in():
        raise UserError("you are not logged in to the Hugging Face Hub", hint=LOGIN_HINT)


def qualified_repo_id(name: str) -> str:
    """`user/name`, of a name that lacks the user: then whoever is logged in. Raises `UserError`."""
    if "/" in name:
        return name
    with translate_hub_errors(name, writing=True):
        return f"{hub_api().whoami()['name']}/{name}"


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    include: Sequence[str] = (),
    branch: str | None = None,
    message: str = DEFAULT_COMMIT_MESSAGE,
    on_message: MessageCallback = lambda text: None,
    on_files_selected: Callable[[list[UploadFile]], None] = lambda files: None,
) -> PushResult:
    """Push a finished run's folder or a fused model's, with a card that names the repository.

    Args:
        include: see `files_of`; the rest, see `push_files`.
        listing: hears what is going to be sent.

    Raises: `UserError`.
    """
    check_push_allowed(repo_id)
    files = select_upload_files(folder, include, render_card_files(folder, repo_id, fetch_base_card=True))
    on_files_selected(files)
    return push_files(files, repo_id, private=private, branch=branch, message=message, on_message=on_message)


def push_files(
    files: Sequence[UploadFile],
    repo_id: str,
    *,
    private: bool = True,
    branch: str | None = None,
    message: str = DEFAULT_COMMIT_MESSAGE,
    on_message: MessageCallback = lambda text: None,
) -> PushResult:
    """Send files to a repository, made if it is not there, in one commit.

    What is large goes first and is not sent again where a later try finds it there; the commit is one request, and
    holds all files or is not made. A try that failed after its commit was made finds nothing left to change.

    Args:
        private: of a new repository; one that is there stays as it is.
        branch: made if it is not there; None for main.
        say: hears of tries that failed.

    Raises: `UserError`.
    """
    check_push_allowed(repo_id)
    with translate_hub_errors(repo_id, writing=True):
        _retrying(lambda: hub_api().create_repo(repo_id, private=private, exist_ok=True), on_message)
        if branch is not None:
            _retrying(lambda: hub_api().create_branch(repo_id, branch=branch, exist_ok=True), on_message)

        info = _retrying(lambda: hub_api().repo_info(repo_id), on_message)
        if private and not info.private:
            on_message(f"{repo_id} is there already, and public.")

        ready = [_operations(files)]
        hub_api().preupload_lfs_files(repo_id, ready[0], revision=branch, free_memory=False)  # it tries again by itself

        def commit() -> Any:
            head = hub_api().repo_info(repo_id, revision=branch).sha  # so that a try given up can't come through later
            operations = ready.pop() if ready else _operations(files)
            # not upload_folder: with xet it makes several commits
            return hub_api().create_commit(
                repo_id, operations, commit_message=message, revision=branch, parent_commit=head
            )

        made = _retrying(commit, on_message)
    page = redact_secrets(f"{hub_api().endpoint}/{repo_id}")
    url = page if branch is None else f"{page}/tree/{branch}"
    return PushResult(repo_id, url, made.oid, bool(info.private), list(files))


def _operations(files: Sequence[UploadFile]) -> list[CommitOperationAdd]:
    """For one try: a try leaves in them what it found at the Hub."""
    from huggingface_hub import CommitOperationAdd

    contents = ((file.path, file.content) for file in files)
    return [CommitOperationAdd(path, c if isinstance(c, bytes) else str(c)) for path, c in contents]


def _retrying(act: Callable[[], Any], say: MessageCallback) -> Any:
    """What huggingface_hub asks once only, asked again while the failure may pass."""
    for tried in range(1, MAX_ATTEMPTS + 1):
        try:
            return act()
        except Exception as error:
            wait = retry_after_seconds(error) or FIRST_RETRY_DELAY * 2 ** (tried - 1)
            if tried == MAX_ATTEMPTS or wait > MAX_RETRY_DELAY or not is_transient_hub_error(error):
                raise
            say(f"The Hub did not take it ({_short(error)}); trying again in {wait:.0f} s.")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _short(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return str(status) if status else type(error).__name__


def checkpoint_files(checkpoint: Path) -> list[UploadFile]:
    """All of a checkpoint, under the name that --resume looks for, and the adapter itself at the top."""
    inside = [path for path in sorted(checkpoint.iterdir()) if path.is_file()]
    top = [path for path in inside if path.name.startswith("adapter")]
    named = [(f"{CHECKPOINT_BRANCH}/{checkpoint.name}/{path.name}", path) for path in inside]
    return [UploadFile(name, shareable_content(path)) for name, path in [*named, *((path.name, path) for path in top)]]
