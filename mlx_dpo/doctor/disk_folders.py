"""The folders that runs write to: whether they can be written to, and how much room is left in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_dpo.doctor.check import CheckOutcome, failed, passed, skipped, warned
from mlx_dpo.utils.cache_folder import cache_root
from mlx_dpo.utils.formatting import format_bytes
from mlx_dpo.utils.temporary_folder import mlx_temporary_folder

TOO_LITTLE, LITTLE = 1e9, 5e9  # bytes that are free
FEWEST_OPEN_FILES = 256  # macOS's default
TOO_LITTLE_TEMPORARY = 50e6  # bytes, for what mlx compiles
WHAT_IT_TAKES = (
    "A run writes checkpoints, each a few times the size of the adapter (10 MB to 1 GB), and reference log-probs of a "
    "few MB; a model that is downloaded or fused takes its whole size (0.6 GB per billion parameters at 4 bits)."
)
_OWN_FOLDER = "Make it a folder of your own (`sudo chown -R $USER` on it, if another user made it)"


@dataclass(frozen=True)
class DiskFolder:
    """A folder that runs write to.

    Attributes:
        name: what it is for.
        path: the folder, which may not exist yet.
        free_bytes: free where it is; None if that is unknown.
        problem: why it can't be written to; None if it can.
    """

    name: str
    path: Path
    free_bytes: int | None
    problem: str | None


def read_folder(name: str, path: Path) -> DiskFolder:
    """Try to write into a folder, or, if it does not exist yet, where it would be made; nothing is left there.

    Args:
        name: what it is for.
        path: the folder.
    """
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder) or folder == folder.parent)
    problem = None
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        free = None
    return DiskFolder(name, path, free, problem)


def own_cache() -> DiskFolder:
    """The folder of mlx-dpo's caches."""
    return read_folder("mlx-dpo cache", cache_root())


def hub_cache() -> DiskFolder:
    """The folder of what is downloaded from the Hub."""
    from huggingface_hub import constants

    return read_folder("Hub cache", Path(constants.HF_HUB_CACHE))


def working_folder() -> DiskFolder:
    """The working directory, to which runs are written by default."""
    try:
        return read_folder("working directory", Path.cwd())
    except FileNotFoundError:
        return DiskFolder("working directory", Path(os.curdir), None, "it was deleted")


def temporary_folder() -> DiskFolder:
    """The folder in which mlx compiles for the CPU."""
    return read_folder("temporary folder", mlx_temporary_folder().path)


def display_path(path: Path) -> str:
    """A path with ~ for the home directory."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # elsewhere, or there is no home directory
        return str(path)


def free_space_text(folders: Sequence[DiskFolder]) -> str:
    """The free space in words; folders of the same disk are named together."""
    by_size: dict[str, list[str]] = {}
    for folder in folders:
        if folder.free_bytes is not None:
            by_size.setdefault(format_bytes(folder.free_bytes), []).append(folder.name)
    return "; ".join(f"{size} free for {', '.join(names)}" for size, names in by_size.items())


def check_disk_space(folders: Sequence[DiskFolder]) -> CheckOutcome:
    """Whether there is room for a run."""
    sizes = [folder.free_bytes for folder in folders if folder.free_bytes is not None]
    if not sizes:
        return warned("the free disk space is unknown")
    detail, least = free_space_text(folders), min(sizes)
    advice = (
        f"{WHAT_IT_TAKES} Free some space (`mlx-dpo cache --clear`, `hf cache prune`), or use folders on another disk: "
        "--adapter-path for runs, HF_HOME for downloads, XDG_CACHE_HOME for caches."
    )
    if least < TOO_LITTLE:
        return failed(detail, advice)
    return warned(detail, advice) if least < LITTLE else passed(detail)


def check_own_cache(folder: DiskFolder) -> CheckOutcome:
    """Whether reference log-probs and verdicts can be kept."""
    where = display_path(folder.path)
    if folder.problem:
        return failed(
            f"{where} can't be written to: {folder.problem}; reference log-probs are computed again in every run",
            f"{_OWN_FOLDER}, or set XDG_CACHE_HOME to a folder that you can write to.",
        )
    return passed(f"{where} can be written to")


def check_hub_cache(folder: DiskFolder, is_offline: bool) -> CheckOutcome:
    """Whether models and data sets can be downloaded.

    Args:
        folder: the Hub's cache.
        is_offline: whether HF_HUB_OFFLINE forbids downloads.
    """
    where = display_path(folder.path)
    if not folder.problem:
        return passed(f"{where} can be written to")
    if is_offline:
        return passed(f"{where} can only be read, which is enough with HF_HUB_OFFLINE")
    return failed(
        f"{where} can't be written to: {folder.problem}; nothing can be downloaded",
        f"{_OWN_FOLDER}, or set HF_HOME to a folder that you can write to.",
    )


def check_working_folder(folder: DiskFolder) -> CheckOutcome:
    """Whether a run can be written where it is by default."""
    where = display_path(folder.path)
    if folder.problem:
        return warned(
            f"{where} can't be written to: {folder.problem}",
            "Change to another folder, or name one with --adapter-path.",
        )
    return passed("it can be written to")  # its name may be private, and is no news


def check_temporary_folder(folder: DiskFolder) -> CheckOutcome:
    """Whether mlx has a folder to compile in."""
    variable = mlx_temporary_folder().variable
    name = f"{variable}={folder.path}" if variable else str(folder.path)
    if not folder.path.is_dir():
        return failed(f"{name} is not a folder", f"Set {variable or 'TMPDIR'} to a folder, or unset it.")
    if folder.problem:
        return failed(f"{name} can't be written to: {folder.problem}", "Set TMPDIR to a folder that you can write to.")
    free = folder.free_bytes
    if free is not None and free < TOO_LITTLE_TEMPORARY:
        return failed(f"{name} has {format_bytes(free)} free", "Free space there, or set TMPDIR to a folder elsewhere.")
    return passed(f"{name} can be written to")


def check_open_files() -> CheckOutcome:
    """Whether enough files can be open at once."""
    try:
        import resource
    except ImportError:
        return skipped("this system has no limit of open files")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < FEWEST_OPEN_FILES:
        return warned(
            f"{limit} files may be open at once; a model or a data set of many files needs {FEWEST_OPEN_FILES}",
            f"Run `ulimit -n {FEWEST_OPEN_FILES}` in this shell before training.",
        )
    return passed("no limit" if limit < 0 or limit > 1 << 30 else f"{limit:,} files may be open at once")
