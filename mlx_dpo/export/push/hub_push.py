"""Upload an adapter or a model to the Hub as one commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.card.model_card import render_card_files
from mlx_dpo.export.local_paths import shareable_content
from mlx_dpo.export.push.upload_files import UploadFile, select_upload_files
from mlx_dpo.lineage.lineage_steps import record_publication
from mlx_dpo.training.run_folder import CHECKPOINTS_FOLDER
from mlx_dpo.utils.hub_client import (
    HubRepoRef,
    hub_api,
    is_transient_hub_error,
    redact_secrets,
    require_login,
    retry_after_seconds,
    status_code,
    translate_hub_errors,
)
from mlx_dpo.utils.retry import retry

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd

T = TypeVar("T")
MAX_ATTEMPTS = 3  # of requests that huggingface_hub sends once; file uploads have their own retries
FIRST_RETRY_DELAY = 2.0  # seconds
MAX_RETRY_DELAY = 300.0  # seconds; if a server asks for more, the push fails at once
DEFAULT_COMMIT_MESSAGE = "Upload with mlx-dpo"
CHECKPOINT_BRANCH = CHECKPOINTS_FOLDER  # the branch that checkpoints are pushed to, and their folder on it


@dataclass(frozen=True)
class PushResult:
    """A finished upload.

    Attributes:
        repo_id: `user/name`.
        url: the repository's page, or the branch's.
        commit: hash of the commit with the files.
        private: whether the repository is private.
        files: every file of the commit, including those that were already there.
    """

    repo_id: str
    url: str
    commit: str
    private: bool
    files: list[UploadFile]


def check_push_allowed(repo_id: str | None) -> None:
    """Check what can be known before an upload: a token is there, and the repository's name is valid.

    Raises:
        UserError: nobody is logged in, or the name is not valid.
    """
    repo = None if repo_id is None else HubRepoRef.parse(repo_id)
    if repo_id is not None and (repo is None or repo.revision or repo.config_and_split):
        raise UserError("this is not a valid repository name; names look like user/name", where=Where(repo_id))
    require_login()


def qualified_repo_id(name: str) -> str:
    """Add the name of the logged-in user to a repository name without one.

    Raises:
        UserError: the Hub can't be asked who is logged in.
    """
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
    base_model: str | None = None,
    on_message: Callable[[str], None] = lambda text: None,
    on_files_selected: Callable[[list[UploadFile]], None] = lambda files: None,
) -> PushResult:
    """Push the folder of a finished run or of a fused model, with a card that names the repository.

    Args:
        folder: the folder to push.
        repo_id: `user/name`.
        private: whether a new repository is private; an existing one stays as it is.
        include: patterns of further files, see `select_upload_files`.
        branch: created if needed; None for main.
        message: title of the commit.
        base_model: Hub id of the base model, for the card; default: what is recorded of it.
        on_message: called with warnings and with a sentence before each further attempt.
        on_files_selected: called with the list of files before anything is sent.

    Raises:
        UserError: the upload can't be made.
    """
    check_push_allowed(repo_id)
    card = render_card_files(folder, repo_id, fetch_base_card=True, base_model=base_model)
    files = select_upload_files(folder, include, card)
    on_files_selected(files)
    result = push_files(files, repo_id, private=private, branch=branch, message=message, on_message=on_message)
    if branch is None:
        try:
            record_publication(folder, repo_id, result.commit)
        except OSError as error:
            on_message(f"{folder} can't be written: {error.strerror or error}, so it does not record its repository.")
    return result


def push_files(
    files: Sequence[UploadFile],
    repo_id: str,
    *,
    private: bool = True,
    branch: str | None = None,
    message: str = DEFAULT_COMMIT_MESSAGE,
    on_message: Callable[[str], None] = lambda text: None,
) -> PushResult:
    """Upload files to a repository, created if needed, in one commit.

    Large files are uploaded first and are not sent again by a later attempt. The commit is a single request: it holds
    all files or is not made. If an attempt fails after its commit was made, the next one has nothing left to change.

    Args:
        files: files to upload.
        repo_id: `user/name`.
        private: whether a new repository is private; an existing one stays as it is.
        branch: created if needed; None for main.
        message: title of the commit.
        on_message: called with warnings and with a sentence before each further attempt.

    Raises:
        UserError: the upload can't be made.
    """
    check_push_allowed(repo_id)
    with translate_hub_errors(repo_id, writing=True):
        _with_retries(lambda: hub_api().create_repo(repo_id, private=private, exist_ok=True), on_message)
        if branch is not None:
            _with_retries(lambda: hub_api().create_branch(repo_id, branch=branch, exist_ok=True), on_message)
        info = _with_retries(lambda: hub_api().repo_info(repo_id), on_message)
        if private and not info.private:
            on_message(f"{repo_id} exists already and is public.")
        unused_operations = [_operations(files)]
        hub_api().preupload_lfs_files(repo_id, unused_operations[0], revision=branch, free_memory=False)

        def commit() -> CommitInfo:
            # The parent is fixed so that a commit request that timed out can't take effect after a later attempt's.
            parent = hub_api().repo_info(repo_id, revision=branch).sha
            operations = unused_operations.pop() if unused_operations else _operations(files)
            # Not upload_folder, which makes several commits with xet.
            return hub_api().create_commit(
                repo_id, operations, commit_message=message, revision=branch, parent_commit=parent
            )

        commit_info = _with_retries(commit, on_message)
    page = redact_secrets(f"{hub_api().endpoint}/{repo_id}")
    url = page if branch is None else f"{page}/tree/{branch}"
    return PushResult(repo_id, url, commit_info.oid, bool(info.private), list(files))


def checkpoint_files(checkpoint: Path) -> list[UploadFile]:
    """The files of a checkpoint, in the folder that --resume looks in, with the adapter also at the top level."""
    paths = [path for path in sorted(checkpoint.iterdir()) if path.is_file()]
    locations = [(f"{CHECKPOINT_BRANCH}/{checkpoint.name}/{path.name}", path) for path in paths]
    locations += [(path.name, path) for path in paths if path.name.startswith("adapter")]
    return [UploadFile(location, shareable_content(path)) for location, path in locations]


def _operations(files: Sequence[UploadFile]) -> list[CommitOperationAdd]:
    """New operations for one attempt: huggingface_hub stores the Hub's responses in them."""
    from huggingface_hub import CommitOperationAdd

    contents = ((file.path, file.content) for file in files)
    return [CommitOperationAdd(path, c if isinstance(c, bytes) else str(c)) for path, c in contents]


def _with_retries(request: Callable[[], T], on_message: Callable[[str], None]) -> T:
    def on_retry(error: Exception, delay: float) -> None:
        reason = status_code(error) or type(error).__name__
        on_message(f"The Hub did not accept the request ({reason}); trying again in {delay:.0f} s.")

    return retry(
        request,
        lambda error: is_transient_hub_error(error) and (retry_after_seconds(error) or 0) <= MAX_RETRY_DELAY,
        attempts=MAX_ATTEMPTS,
        first_delay=FIRST_RETRY_DELAY,
        retry_after=lambda error: retry_after_seconds(error) or None,
        on_retry=on_retry,
    )
