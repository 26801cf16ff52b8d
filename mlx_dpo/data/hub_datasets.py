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

from mlx_dpo.data.hub_splits import READ, Split, choose, splits_of, validation_of
from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.hub_client import HubName, client, hub_errors, quietly

BEFORE = "no such file or folder here, and "


def hub_name(name: str) -> HubName | None:
    """The data set that a name stands for; None where it is a file or folder of this machine, or looks like one."""
    repo = HubName.parse(name)
    try:
        local = name.endswith(READ) or Path(name).exists() or Path(name).parent.is_dir()
    except OSError:  # too long for a path
        return None
    return None if local else repo


class Dataset:
    """A data set's repository at a revision: what is in it, and its rows."""

    def __init__(self, name: str, repo: HubName) -> None:
        """Look at what is there. Raises `UserError`."""
        self.name, self.repo = name, repo
        self.where = Where(name)
        with hub_errors(name, before=BEFORE), quietly():
            api = client()
            fetched = api.snapshot_download(  # online or not
                repo.repo_id, repo_type="dataset", revision=repo.revision, allow_patterns=["README.md"]
            )
            folder = Path(fetched)
            self.commit = folder.name
            self.files = self._listed(folder)
        self.splits, self.default = splits_of(self.files, _card(folder / "README.md"))

    def _listed(self, folder: Path) -> list[str]:
        """Every file of the repository; offline, every one that is here."""
        from huggingface_hub import is_offline_mode

        if is_offline_mode():
            return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        files = client().list_repo_files(self.repo.repo_id, repo_type="dataset", revision=self.commit)
        for file in files:
            _check_inside(file, self.where)
        return files

    def split(self) -> Split:
        """The split that the name asks for. Raises `UserError`."""
        return choose(self.splits, self.default, self.repo.part, self.files, self.where)

    def validation(self) -> str | None:
        """The name of the validation split, where there is one and the name asks for no split of its own."""
        split, part = self.split(), self.repo.part
        if part is not None and part.rpartition("/")[2] == split.name:
            return None
        found = validation_of(self.splits, split.config)
        at = f"@{self.repo.revision}" if self.repo.revision else ""
        return f"{self.repo.repo_id}{at}:{split.config}/{found}" if found else None

    def fetch(self, file: str) -> Path:
        """A file of it, on this machine. Raises `UserError`."""
        with hub_errors(self.name):
            got = client().hf_hub_download(self.repo.repo_id, file, repo_type="dataset", revision=self.commit)
        return Path(got)


class _Rows:
    """The lines of a split as a stream that can be read once."""

    def __init__(self, dataset: Dataset, files: Sequence[str]) -> None:
        self.dataset, self.files = dataset, files
        self.done, self.within = 0, 0.0

    def share(self) -> float:
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
        from mlx_dpo.data.row_files import lines_of, open_source

        path = self.dataset.fetch(file)
        with open_source(str(path), f"{self.dataset.name} ({file})") as source:
            for _, _, line in lines_of(source):
                self.within = source.share()
                yield line if line.endswith(b"\n") else line + b"\n"


@contextmanager
def open_dataset(name: str, repo: HubName) -> Iterator[Any]:
    """The split that a name asks for, as a source of rows; its lines are numbered through. Raises `UserError`."""
    from mlx_dpo.data.row_files import Source

    dataset = Dataset(name, repo)
    rows = _Rows(dataset, dataset.split().files)
    yield Source(name, rows, False, rows.share)


def _check_inside(file: str, where: Where) -> None:
    parts = re.split(r"[/\\]", file)
    if ".." in parts or file.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", file):
        raise UserError(f"names a file that leaves its folder ({file[:60]!r}); nothing was fetched", where=where)


def _card(readme: Path) -> dict[str, Any]:
    """The YAML head of a README.md; empty where there is none that can be read."""
    try:
        text = readme.read_text(encoding="utf-8")
        head = re.match(r"\s*---\r?\n(.*?)\n---", text, re.DOTALL)
        data = yaml.safe_load(head[1]) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}
