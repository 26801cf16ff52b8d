"""`push`: an adapter run or a model onto the Hub, as one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.card.model_card import made_for
from mlx_dpo.export.push.upload_files import File, files_of, shareable
from mlx_dpo.utils.hub_client import (
    LOG_IN,
    HubName,
    client,
    has_token,
    hub_errors,
    is_passing,
    retry_after,
    without_secrets,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

TRIES = 3  # of what huggingface_hub asks once only; the upload of a file has its own
WAIT = 2.0  # seconds before the second; doubled for each further one
LONGEST_WAIT = 300.0  # seconds that a server may ask for
MESSAGE = "Upload with mlx-dpo"
CHECKPOINTS = "checkpoints"  # the branch that checkpoints go to, and their folder there

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pushed:
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
    files: list[File]


def check_ready(repo_id: str | None) -> None:
    """What can be known before anything is sent: somebody is logged in, and the name is one. Raises `UserError`."""
    name = None if repo_id is None else HubName.parse(repo_id)
    if repo_id is not None and (name is None or name.revision or name.part):
        raise UserError("is not a name for a repository; names are like user/name", where=Where(repo_id))
    if not has_token():
        raise UserError("you are not logged in to the Hugging Face Hub", hint=LOG_IN)


def full_name(name: str) -> str:
    """`user/name`, of a name that lacks the user: then whoever is logged in. Raises `UserError`."""
    if "/" in name:
        return name
    with hub_errors(name, writing=True):
        return f"{client().whoami()['name']}/{name}"


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    include: Sequence[str] = (),
    branch: str | None = None,
    message: str = MESSAGE,
    say: Say = lambda text: None,
    listing: Callable[[list[File]], None] = lambda files: None,
) -> Pushed:
    """Push a finished run's folder or a fused model's, with a card that names the repository.

    Args:
        include: see `files_of`; the rest, see `push_files`.
        listing: hears what is going to be sent.

    Raises: `UserError`.
    """
    check_ready(repo_id)
    files = files_of(folder, include, made_for(folder, repo_id, ask_hub=True))
    listing(files)
    return push_files(files, repo_id, private=private, branch=branch, message=message, say=say)


def push_files(
    files: Sequence[File],
    repo_id: str,
    *,
    private: bool = True,
    branch: str | None = None,
    message: str = MESSAGE,
    say: Say = lambda text: None,
) -> Pushed:
    """Send files to a repository, made if it is not there, in one commit.

    What is large goes first and is not sent again where a later try finds it there; the commit is one request, and
    holds all files or is not made. A try that failed after its commit was made finds nothing left to change.

    Args:
        private: of a new repository; one that is there stays as it is.
        branch: made if it is not there; None for main.
        say: hears of tries that failed.

    Raises: `UserError`.
    """
    check_ready(repo_id)
    with hub_errors(repo_id, writing=True):
        _retrying(lambda: client().create_repo(repo_id, private=private, exist_ok=True), say)
        if branch is not None:
            _retrying(lambda: client().create_branch(repo_id, branch=branch, exist_ok=True), say)

        info = _retrying(lambda: client().repo_info(repo_id), say)
        if private and not info.private:
            say(f"{repo_id} is there already, and public.")

        ready = [_operations(files)]
        client().preupload_lfs_files(repo_id, ready[0], revision=branch, free_memory=False)  # it tries again by itself

        def commit() -> Any:
            head = client().repo_info(repo_id, revision=branch).sha  # so that a try given up can't come through later
            operations = ready.pop() if ready else _operations(files)
            # not upload_folder: with xet it makes several commits
            return client().create_commit(
                repo_id, operations, commit_message=message, revision=branch, parent_commit=head
            )

        made = _retrying(commit, say)
    page = without_secrets(f"{client().endpoint}/{repo_id}")
    url = page if branch is None else f"{page}/tree/{branch}"
    return Pushed(repo_id, url, made.oid, bool(info.private), list(files))


def _operations(files: Sequence[File]) -> list[CommitOperationAdd]:
    """For one try: a try leaves in them what it found at the Hub."""
    from huggingface_hub import CommitOperationAdd

    contents = ((file.path, file.content) for file in files)
    return [CommitOperationAdd(path, c if isinstance(c, bytes) else str(c)) for path, c in contents]


def _retrying(act: Callable[[], Any], say: Say) -> Any:
    """What huggingface_hub asks once only, asked again while the failure may pass."""
    for tried in range(1, TRIES + 1):
        try:
            return act()
        except Exception as error:
            wait = retry_after(error) or WAIT * 2 ** (tried - 1)
            if tried == TRIES or wait > LONGEST_WAIT or not is_passing(error):
                raise
            say(f"The Hub did not take it ({_short(error)}); trying again in {wait:.0f} s.")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _short(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return str(status) if status else type(error).__name__


def checkpoint_files(checkpoint: Path) -> list[File]:
    """All of a checkpoint, under the name that --resume looks for, and the adapter itself at the top."""
    inside = [path for path in sorted(checkpoint.iterdir()) if path.is_file()]
    top = [path for path in inside if path.name.startswith("adapter")]
    named = [(f"{CHECKPOINTS}/{checkpoint.name}/{path.name}", path) for path in inside]
    return [File(name, shareable(path)) for name, path in [*named, *((path.name, path) for path in top)]]
