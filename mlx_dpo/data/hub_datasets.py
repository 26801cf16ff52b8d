"""Data sets of the Hub, by `user/name@revision:config/split`: fetched file by file as they are read, never held whole.

huggingface_hub fetches and keeps the files, so that a second run, or one offline, finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mlx_dpo.data.hub_splits import READABLE_SUFFIXES, DatasetSplit, choose_split, find_splits, find_validation_split
from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.hub_client import HubRepoRef, hub_api, quiet_hub, translate_hub_errors

NOT_LOCAL = "no such file or folder here, and "


def parse_hub_name(name: str) -> HubRepoRef | None:
    """The data set that a name stands for; None where it is a file or folder of this machine, or looks like one."""
    repo = HubRepoRef.parse(name)
    try:
        local = name.endswith(READABLE_SUFFIXES) or Path(name).exists() or Path(name).parent.is_dir()
    except OSError:  # too long for a path
        return None
    return None if local else repo


class HubDataset:
    """A data set's repository at a revision: what is in it, and its rows."""

    def __init__(self, name: str, repo: HubRepoRef) -> None:
        """Look at what is there. Raises `UserError`."""
        self.name, self.repo = name, repo
        self.where = Where(name)
        with translate_hub_errors(name, prefix=NOT_LOCAL), quiet_hub():
            api = hub_api()
            fetched = api.snapshot_download(  # online or not
                repo.repo_id, repo_type="dataset", revision=repo.revision, allow_patterns=["README.md"]
            )
            folder = Path(fetched)
            self.commit = folder.name
            self.files = self._list_files(folder)
        self.splits, self.default_config = find_splits(self.files, _read_card(folder / "README.md"))

    def _list_files(self, folder: Path) -> list[str]:
        """Every file of the repository; offline, every one that is here."""
        from huggingface_hub import is_offline_mode

        if is_offline_mode():
            return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        files = hub_api().list_repo_files(self.repo.repo_id, repo_type="dataset", revision=self.commit)
        for file in files:
            _check_inside(file, self.where)
        return files

    def requested_split(self) -> DatasetSplit:
        """The split that the name asks for. Raises `UserError`."""
        return choose_split(self.splits, self.default_config, self.repo.config_and_split, self.files, self.where)

    def validation_name(self) -> str | None:
        """The name of the validation split, where there is one and the name asks for no split of its own."""
        split, part = self.requested_split(), self.repo.config_and_split
        if part is not None and part.rpartition("/")[2] == split.name:
            return None
        found = find_validation_split(self.splits, split.config)
        at = f"@{self.repo.revision}" if self.repo.revision else ""
        return f"{self.repo.repo_id}{at}:{split.config}/{found}" if found else None

    def download(self, file: str) -> Path:
        """A file of it, on this machine. Raises `UserError`."""
        with translate_hub_errors(self.name):
            got = hub_api().hf_hub_download(self.repo.repo_id, file, repo_type="dataset", revision=self.commit)
        return Path(got)


class _SplitLines:
    """The lines of a split as a stream that can be read once."""

    def __init__(self, dataset: HubDataset, files: Sequence[str]) -> None:
        self.dataset, self.files = dataset, files
        self.done, self.within = 0, 0.0

    def fraction_read(self) -> float:
        """How much is read, 0 to 1."""
        return min(1.0, (self.done + self.within) / len(self.files))

    def peek(self, size: int) -> bytes:
        """Nothing: these are lines, no array."""
        return b""

    def __iter__(self) -> Iterator[bytes]:
        for file in self.files:
            yield from self._lines(file)
            self.done, self.within = self.done + 1, 0.0

    def _lines(self, file: str) -> Iterator[bytes]:
        from mlx_dpo.data.row_files import iter_lines, open_rows

        path = self.dataset.download(file)
        with open_rows(str(path), f"{self.dataset.name} ({file})") as source:
            for _, _, line in iter_lines(source):
                self.within = source.fraction_read()
                yield line if line.endswith(b"\n") else line + b"\n"


@contextmanager
def open_hub_dataset(name: str, repo: HubRepoRef) -> Iterator[Any]:
    """The split that a name asks for, as a source of rows; its lines are numbered through. Raises `UserError`."""
    from mlx_dpo.data.row_files import RowStream

    dataset = HubDataset(name, repo)
    rows = _SplitLines(dataset, dataset.requested_split().files)
    yield RowStream(name, rows, False, rows.fraction_read)


def _check_inside(file: str, where: Where) -> None:
    parts = re.split(r"[/\\]", file)
    if ".." in parts or file.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", file):
        raise UserError(f"names a file that leaves its folder ({file[:60]!r}); nothing was fetched", where=where)


def _read_card(readme: Path) -> dict[str, Any]:
    """The YAML head of a README.md; empty where there is none that can be read."""
    try:
        text = readme.read_text(encoding="utf-8")
        head = re.match(r"\s*---\r?\n(.*?)\n---", text, re.DOTALL)
        data = yaml.safe_load(head[1]) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}
