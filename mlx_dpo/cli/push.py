"""The command `mlx-dpo push`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_dpo.cli.config_options import JsonFlag
from mlx_dpo.cli.console import print_json, print_message, print_text
from mlx_dpo.utils.formatting import format_bytes

if TYPE_CHECKING:
    from mlx_dpo.export.push.hub_push import PushResult
    from mlx_dpo.export.push.upload_files import UploadFile


def push(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of a run or of a fused model.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="Repository: user/name, or a name in your own namespace.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public instead of private.")] = False,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATTERN", help="Upload further files of the folder; can be repeated."),
    ] = None,
    branch: Annotated[
        str | None, typer.Option("--branch", help="Branch, created if it does not exist. Default: main.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", help="Hub id of the base model, for the card. Default: what is recorded of it."),
    ] = None,
    message: Annotated[str, typer.Option("--commit-message", help="Title of the commit.")] = "Upload with mlx-dpo",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded, and upload nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Upload an adapter or a fused model with its card to the Hugging Face Hub, as one commit.

    Uploads the model or adapter, its config and its card. Checkpoints, logs, reports and data are only uploaded if
    --include names them. A README.md of your own is uploaded unchanged; otherwise a model card is written. After an
    interruption, the same command resumes the upload.

    Examples:
      mlx-dpo push adapters --repo-id user/name --dry-run
      mlx-dpo push ./Qwen3-4B-mine --repo-id user/Qwen3-4B-mine --public
      mlx-dpo push runs/a --repo-id user/name --include metrics.jsonl --include 'checkpoints/*'
    """
    from mlx_dpo.export.folder_kind import detect_folder_kind
    from mlx_dpo.export.push.hub_push import check_push_allowed, push_folder, qualified_repo_id
    from mlx_dpo.export.push.upload_files import select_upload_files

    detect_folder_kind(path)
    if dry_run:
        from mlx_dpo.export.card.model_card import render_card_files

        files = select_upload_files(path, include or [], render_card_files(path, repo_id, base_model=base_model))
        visibility = "public" if public else "private"
        _print_files(files, f"Would upload to {repo_id} ({visibility} if it is new):")
        if json:
            print_json({"repo_id": repo_id, "dry_run": True, "files": _sizes(files)})
        return
    check_push_allowed(repo_id if "/" in repo_id else None)
    result = push_folder(
        path,
        qualified_repo_id(repo_id),
        private=not public,
        include=include or [],
        branch=branch,
        message=message,
        base_model=base_model,
        on_message=print_message,
        on_files_selected=lambda files: _print_files(files, "Uploading:"),
    )
    if json:
        print_json(push_result_json(result))
    else:
        print_text(push_location(result))


def push_location(result: PushResult) -> str:
    """The URL of what was uploaded, and whether it is private."""
    return f"{result.url}  ({'private' if result.private else 'public'})"


def push_result_json(result: PushResult) -> dict[str, Any]:
    """What was uploaded, as plain values."""
    return {
        "repo_id": result.repo_id,
        "url": result.url,
        "commit": result.commit,
        "private": result.private,
        "files": _sizes(result.files),
    }


def _sizes(files: Sequence[UploadFile]) -> dict[str, int]:
    return {file.path: file.size for file in files}


def _print_files(files: Sequence[UploadFile], title: str) -> None:
    print_message(title)
    width = max(len(file.path) for file in files)
    for file in files:
        print_message(f"  {file.path:{width}}  {format_bytes(file.size):>10}")
