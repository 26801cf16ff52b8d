"""mlx-dpo push"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_dpo.cli.console import print_json, stderr_console, stdout_console

if TYPE_CHECKING:
    from mlx_dpo.export.push.hub_push import PushResult
    from mlx_dpo.export.push.upload_files import UploadFile


def push(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run's folder, or a fused model's.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="Where to: user/name, or a name under your own.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; without it, it is private.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATTERN", help="Send more files of the folder; may be given several times."),
    ] = None,
    branch: Annotated[
        str | None, typer.Option("--branch", help="A branch, made if it is not there. Default: main.")
    ] = None,
    message: Annotated[str, typer.Option("--commit-message", help="Title of the commit.")] = "Upload with mlx-dpo",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Put an adapter or a fused model on the Hugging Face Hub, with its card, as one commit.

    What goes is the model or adapter, its config and its card, and no checkpoints, logs, reports or data unless
    --include names them. A README.md that you wrote yourself goes as it is; else the card is written for the
    repository. Interrupted, the same command goes on: what arrived is not sent again.

    [bold]Examples[/]

      mlx-dpo push adapters --repo-id user/name --dry-run

      mlx-dpo push ./Qwen3-4B-mine --repo-id user/Qwen3-4B-mine --public

      mlx-dpo push runs/a --repo-id user/name --include metrics.jsonl --include 'checkpoints/*'
    """
    from mlx_dpo.export.push.hub_push import check_push_allowed, push_folder, qualified_repo_id
    from mlx_dpo.export.push.upload_files import detect_folder_kind, select_upload_files

    detect_folder_kind(path)
    if dry_run:
        from mlx_dpo.export.card.model_card import render_card_files

        files = select_upload_files(path, include or [], render_card_files(path, repo_id))
        _list(files, f"Would go to {repo_id}, {'public' if public else 'private'} if it is new:")
        if json:
            print_json({"repo_id": repo_id, "dry_run": True, "files": _sizes(files)})
        return
    check_push_allowed(repo_id if "/" in repo_id else None)
    done = push_folder(
        path,
        qualified_repo_id(repo_id),
        private=not public,
        include=include or [],
        branch=branch,
        message=message,
        on_message=lambda text: stderr_console.print(text, soft_wrap=True, markup=False),
        on_files_selected=lambda files: _list(files, "Goes to the Hub:"),
    )
    if json:
        print_json(push_result_json(done))
    else:
        stdout_console.print(push_location(done), soft_wrap=True, markup=False)


def push_location(done: PushResult) -> str:
    """The line that says where it is."""
    return f"{done.url}  ({'private' if done.private else 'public'})"


def push_result_json(done: PushResult) -> dict[str, Any]:
    """What was pushed, as plain values."""
    told = {"repo_id": done.repo_id, "url": done.url, "commit": done.commit, "private": done.private}
    return {**told, "files": _sizes(done.files)}


def _sizes(files: Sequence[UploadFile]) -> dict[str, int]:
    return {file.path: file.size for file in files}


def _list(files: Sequence[UploadFile], title: str) -> None:
    stderr_console.print(title, soft_wrap=True, markup=False)
    width = max(len(file.path) for file in files)
    for file in files:
        stderr_console.print(f"  {file.path:{width}}  {_size(file.size):>10}", soft_wrap=True, markup=False)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
