"""Repositories of a Hub as files on disk: objects by their hash, and one JSON file a repository with its commits."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".parquet", ".gguf", ".gz", ".png", ".bin", ".model")  # kept as git-lfs objects
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Conflict(Exception):
    """The repository has moved on, or is there already."""


def git_oid(data: bytes) -> str:
    """What git calls these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file at a commit; `sha256` where it is a large one, and then the bytes' name among the objects."""

    path: str
    size: int
    oid: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def to_json(self) -> dict[str, Any]:
        """As the Hub's tree lists it."""
        listed: dict[str, Any] = {"type": "file", "path": self.path, "size": self.size, "oid": self.oid}
        if self.sha256:
            listed["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return listed


class Store:
    """All repositories and objects below a folder. Safe from several threads."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.RLock()
        (root / "objects").mkdir(parents=True)

    def object(self, name: str) -> Path:
        """Where the bytes of this hash lie, or would."""
        return self.root / "objects" / name

    def put_object(self, data: bytes, name: str) -> None:
        """Keep bytes under their hash, whole or not at all."""
        partial = self.object(f".{name}.{threading.get_ident()}")
        partial.write_bytes(data)
        partial.replace(self.object(name))

    def _file(self, kind: str, repo_id: str) -> Path:
        return self.root / "repos" / kind / f"{repo_id}.json"

    def repo(self, kind: str, repo_id: str) -> dict[str, Any] | None:
        """The repository, or None."""
        file = self._file(kind, repo_id)
        with self.lock:
            return json.loads(file.read_text()) if file.exists() else None

    def _write(self, kind: str, repo_id: str, repo: dict[str, Any]) -> None:
        file = self._file(kind, repo_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(repo))

    def create(self, kind: str, repo_id: str, *, private: bool = False, gated: bool = False) -> None:
        """A new repository with the Hub's first commit. Raises `Conflict` where it exists."""
        with self.lock:
            if self.repo(kind, repo_id):
                raise Conflict("You already created this model repo")
            self._write(kind, repo_id, {"private": private, "gated": gated, "heads": {}, "commits": {}, "order": []})
            self.commit(kind, repo_id, "main", "initial commit", {".gitattributes": GITATTRIBUTES})

    def branch(self, kind: str, repo_id: str, name: str) -> None:
        """A new branch at main's head. Raises `Conflict` where it exists."""
        with self.lock:
            repo = self.repo(kind, repo_id)
            assert repo
            if name in repo["heads"]:
                raise Conflict("Reference already exists")
            repo["heads"][name] = repo["heads"]["main"]
            self._write(kind, repo_id, repo)

    def commit(
        self,
        kind: str,
        repo_id: str,
        branch: str,
        title: str,
        files: dict[str, bytes | Entry],
        parent: str | None = None,
    ) -> str:
        """Add files, all in one commit, and move the branch there. Raises `Conflict` where `parent` is not its head."""
        entries = {}
        for path, content in files.items():
            if isinstance(content, bytes):
                large = path.endswith(LARGE)
                sha256 = hashlib.sha256(content).hexdigest() if large else None
                entry = Entry(path, len(content), git_oid(content), sha256)
                self.put_object(content, entry.etag)
            else:
                entry = content
            entries[path] = vars(entry)
        with self.lock:
            repo = self.repo(kind, repo_id)
            assert repo
            head = repo["heads"].get(branch)
            if parent is not None and parent != head:
                raise Conflict("A commit has happened since. Please refresh and try again.")
            tree = {**(repo["commits"][head]["files"] if head else {}), **entries}
            oid = hashlib.sha1(json.dumps([kind, repo_id, head, title, tree, len(repo["order"])]).encode()).hexdigest()
            repo["commits"][oid] = {"title": title, "branch": branch, "files": tree, "changed": sorted(entries)}
            repo["order"].append(oid)
            repo["heads"][branch] = oid
            self._write(kind, repo_id, repo)
        return oid

    def resolve(self, kind: str, repo_id: str, revision: str) -> str | None:
        """The commit that a branch, or a commit's own name, stands for."""
        repo = self.repo(kind, repo_id) or {"heads": {}, "commits": {}}
        if revision in repo["commits"]:
            return revision
        return repo["heads"].get(revision)

    def files(self, kind: str, repo_id: str, revision: str = "main") -> dict[str, Entry]:
        """The files at a revision by path; none where there is no such revision."""
        repo, oid = self.repo(kind, repo_id), self.resolve(kind, repo_id, revision)
        return {path: Entry(**entry) for path, entry in repo["commits"][oid]["files"].items()} if repo and oid else {}

    def titles(self, kind: str, repo_id: str, branch: str = "main") -> list[str]:
        """The titles of a branch's own commits, the first one first."""
        repo = self.repo(kind, repo_id) or {"order": []}
        return [c["title"] for c in (repo["commits"][oid] for oid in repo["order"]) if c["branch"] == branch]
