"""Data sets of the Hub, `user/name@revision:config/split`, downloaded file by file as they are read.

huggingface_hub caches the files, so a second run, or one offline, downloads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mlx_dpo.data.files.hub_splits import (
    READABLE_SUFFIXES,
    DatasetSplit,
    choose_split,
    find_splits,
    find_validation_split,
)
from mlx_dpo.data.files.json_lines import numbered_lines
from mlx_dpo.data.files.local_files import RowStream, open_local_rows
from mlx_dpo.discovery.near_names import suggest_datasets
from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.hub_client import HubRepoRef, hub_api, quiet_hub, translate_hub_errors

_NOT_LOCAL = "no such file or folder here, and "


def parse_hub_name(name: str) -> HubRepoRef | None:
    """The dataset that a name refers to; None if it is a local file or folder, or looks like one."""
    repo = HubRepoRef.parse(name)
    try:
        local = name.endswith(READABLE_SUFFIXES) or Path(name).exists() or Path(name).parent.is_dir()
    except OSError:  # too long for a path
        return None
    return None if local else repo


@contextmanager
def open_hub_rows(name: str, repo: HubRepoRef) -> Iterator[RowStream]:
    """Open the rows of the split that a name refers to, numbered across its files. Raises `UserError`."""
    dataset = HubDataset(name, repo)
    files = dataset.requested_split().files
    fraction_read = 0.0

    def lines() -> Iterator[bytes]:
        nonlocal fraction_read
        for i, file in enumerate(files):
            with open_local_rows(str(dataset.download(file)), f"{name} ({file})") as rows:
                for _, _, line in rows.lines:
                    fraction_read = (i + rows.fraction_read()) / len(files)
                    yield line
            fraction_read = (i + 1) / len(files)

    yield RowStream(name, numbered_lines(lines()), False, lambda: fraction_read)


class HubDataset:
    """A dataset repository at a revision.

    Attributes:
        commit: the revision's commit.
        files: all files of the repository; offline, those in the cache.
        splits: its splits.
        default_config: the configuration that is read if none is named.
    """

    def __init__(self, name: str, repo: HubRepoRef) -> None:
        """List what is in the repository. Raises `UserError`."""
        self.name, self.repo = name, repo
        with suggest_datasets(name), translate_hub_errors(name, prefix=_NOT_LOCAL), quiet_hub():
            downloaded = hub_api().snapshot_download(  # online or not
                repo.repo_id, repo_type="dataset", revision=repo.revision, allow_patterns=["README.md"]
            )
            folder = Path(downloaded)
            self.commit = folder.name
            self.files = self._list_files(folder)
        self.splits, self.default_config = find_splits(self.files, _read_card(folder / "README.md"))

    def _list_files(self, folder: Path) -> list[str]:
        from huggingface_hub import is_offline_mode

        if is_offline_mode():
            return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        files = hub_api().list_repo_files(self.repo.repo_id, repo_type="dataset", revision=self.commit)
        for file in files:
            if ".." in re.split(r"[/\\]", file) or re.match(r"[/\\~]|[A-Za-z]:", file):
                message = f"names a file that leaves its folder ({file[:60]!r}); nothing was fetched"
                raise UserError(message, where=Where(self.name))
        return files

    def requested_split(self) -> DatasetSplit:
        """The split that the name refers to. Raises `UserError`."""
        return choose_split(self.splits, self.default_config, self.repo.config_and_split, self.files, Where(self.name))

    def validation_name(self) -> str | None:
        """The name of the validation split; None where there is none, or the name already refers to a split."""
        split, part = self.requested_split(), self.repo.config_and_split
        if part is not None and part.rpartition("/")[2] == split.name:
            return None
        validation = find_validation_split(self.splits, split.config)
        revision = f"@{self.repo.revision}" if self.repo.revision else ""
        return f"{self.repo.repo_id}{revision}:{split.config}/{validation}" if validation else None

    def download(self, file: str) -> Path:
        """The path of a file in the cache, downloaded if it is not there. Raises `UserError`."""
        with translate_hub_errors(self.name):
            path = hub_api().hf_hub_download(self.repo.repo_id, file, repo_type="dataset", revision=self.commit)
        return Path(path)


def _read_card(readme: Path) -> dict[str, Any]:
    """The YAML header of a README.md; empty if it has none, or none that can be parsed."""
    try:
        text = readme.read_text(encoding="utf-8")
        header = re.match(r"\s*---\r?\n(.*?)\n---", text, re.DOTALL)
        data = yaml.safe_load(header[1]) if header else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}
