"""Folders of caches. Their files may be deleted at any time: missing values are computed when they are needed."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder of all caches: under XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx-dpo"


def cache_folder(name: str) -> Path:
    """The folder of a kind of cache."""
    return cache_root() / name
