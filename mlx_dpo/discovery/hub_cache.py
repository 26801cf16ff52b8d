"""Repositories in huggingface_hub's cache, by the names of their folders.

`huggingface_hub.scan_cache_dir` would also look at every file of every dataset: too slow for the Tab key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

RepoType = Literal["model", "dataset"]


def hub_cache_folder() -> Path:
    """The folder of the cache, by HF_HUB_CACHE and HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_repos(repo_type: RepoType) -> dict[str, Path]:
    """The folders of the repositories in the cache by their ids, in alphabetical order."""
    prefix = f"{repo_type}s--"
    try:
        folders = sorted(folder for folder in hub_cache_folder().glob(f"{prefix}*") if folder.is_dir())
    except OSError:
        return {}
    return {folder.name.removeprefix(prefix).replace("--", "/"): folder for folder in folders}


def latest_snapshot(repo: Path) -> Path | None:
    """The files of a cached repository as of its default branch, or else of what was downloaded last.

    Args:
        repo: the repository's folder in the cache.
    """
    snapshots = repo / "snapshots"
    try:
        commit = (repo / "refs" / "main").read_text(encoding="utf-8").strip()
        if (snapshots / commit).is_dir():
            return snapshots / commit
    except OSError:
        pass  # only another revision was downloaded
    try:
        return max(snapshots.iterdir(), key=lambda folder: folder.stat().st_mtime, default=None)
    except OSError:
        return None
