"""A Hub on 127.0.0.1: the HTTP protocol that huggingface_hub speaks, over a `Store` on disk, with faults on request.

What it serves: whoami, create repo, branch, info, refs, tree (in pages), paths-info, validate-yaml, preupload, the LFS
batch with whole and multipart uploads and their verification, commit, and resolve with ranges. Who may do what follows
huggingface.co: no token or a missing repository is 401, a token that may not write is 403, what is private is missing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.card_rules import errors_of
from tests.hub.faults import Fault, Faults
from tests.hub.store import LARGE, Conflict, Entry, Store

WRITE, READ = "hf_WriteWriteWriteWriteWriteWriteWrite", "hf_ReadReadReadReadReadReadReadRead"
ROLES = {WRITE: "write", READ: "read"}
USER = "tester"
PAGE = 5  # files in a page of a tree
REPO = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
FILE = r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)"


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


class Hub:
    """The server.

    Attributes:
        store: what it holds.
        requests: all it was asked, as (method, path, token or None).
        waits: seconds that its client waited between tries; see `tests.hub.fixture`.
    """

    def __init__(self, root: Path, part_size: int = 1 << 20) -> None:
        self.store, self.faults, self.part_size = Store(root), Faults(), part_size
        self.requests: list[tuple[str, str, str | None]] = []
        self.waits: list[float] = []
        self.parts: dict[str, dict[int, bytes]] = {}
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.http.daemon_threads = True
        self.http.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def inject_fault(self, method: str, path: str, **options: Any) -> None:
        """Let requests go wrong; see `Fault`."""
        self.faults.add(Fault(method, path, **options))

    def count_requests(self, method: str, path: str) -> int:
        """How many requests of this kind there were."""
        return sum(m == method and re.search(path, p) is not None for m, p, _ in self.requests)

    def content(self, repo_id: str, path: str, revision: str = "main", kind: str = "models") -> bytes:
        """A file's bytes."""
        return self.store.object(self.store.files(kind, repo_id, revision)[path].etag).read_bytes()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *args: Any) -> None: ...

    def _handle(self) -> None:
        hub: Hub = self.server.hub
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        authorization = self.headers.get("Authorization") or ""
        self.token = authorization.removeprefix("Bearer ") or None
        if authorization.startswith("Basic "):  # a mirror that lets its own users in
            self.token = WRITE
        hub.requests.append((self.command, self.route, self.token))
        self.fault = hub.faults.take(self.command, self.route)
        if self.fault and self.fault.cut == "request":
            self.rfile.read(min(10, int(self.headers.get("Content-Length") or 0)))
            return self._hang_up()
        self.body = self._read_body()
        if self.fault and not self.fault.cut and self.fault.delay:
            time.sleep(self.fault.delay)
        if self.fault and self.fault.status:
            return self._answer(self.fault.status, self.fault.body.encode(), dict(self.fault.headers))
        try:
            self._dispatch()
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._answer(refused.status, json.dumps({"error": refused.message}).encode(), headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        return None

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        cut = self.fault is not None and self.fault.cut == "answer"
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut and self.fault:
            self.wfile.flush()
            time.sleep(self.fault.delay)
            self._hang_up()

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(value).encode(), headers)

    def _dispatch(self) -> None:
        if self.token is not None and self.token not in ROLES:
            raise Refused(401, "Invalid credentials in Authorization header")
        for method, pattern, handler in ROUTES:
            if (method == self.command or (self.command, method) == ("HEAD", "GET")) and (
                match := re.fullmatch(pattern, self.route)
            ):
                parameters = match.groupdict()
                if "kind" in parameters:
                    parameters["kind"] = (parameters["kind"] or "models").rstrip("/")
                return handler(self, self.server.hub, **parameters)
        raise Refused(404, f"the test's Hub has no {self.command} {self.route}")

    def readable(self, hub: Hub, kind: str, repo: str) -> dict[str, Any]:
        """The repository. Refuses one that is missing, or private and asked for without its owner's token."""
        repository = hub.store.repo(kind, repo)
        if repository and not (repository["private"] and self.token not in ROLES):
            return repository
        if self.token is None:
            raise Refused(401, "Invalid username or password.")
        raise Refused(404, "Repository not found", "RepoNotFound")

    def writable(self, hub: Hub, kind: str, repo: str) -> dict[str, Any]:
        repository = self.readable(hub, kind, repo)
        self.may_write(repo)
        return repository

    def may_write(self, repo: str) -> None:
        if self.token is None:
            raise Refused(401, "Invalid username or password.")
        if ROLES[self.token] != "write" or not repo.startswith(f"{USER}/"):
            raise Refused(
                403, f"You don't have the rights to create a model under the namespace {repo.split('/')[0]!r}"
            )

    def files_at(self, hub: Hub, kind: str, repo: str, revision: str) -> tuple[str, dict[str, Entry]]:
        commit = hub.store.resolve(kind, repo, revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, hub.store.files(kind, repo, revision)


def whoami(h: _Handler, hub: Hub) -> None:
    if h.token is None:
        raise Refused(401, "Invalid username or password.")
    h._json({"type": "user", "name": USER, "auth": {"accessToken": {"role": ROLES[h.token]}}, "orgs": []})


def create(h: _Handler, hub: Hub) -> None:
    request = json.loads(h.body)
    repo = f"{request.get('organization') or USER}/{request['name']}"
    h.may_write(repo)
    kind = f"{request.get('type', 'model')}s"
    url = f"{hub.url}/{repo}" if kind == "models" else f"{hub.url}/{kind}/{repo}"
    try:
        hub.store.create(kind, repo, private=request.get("visibility") == "private" or request.get("private", False))
    except Conflict as conflict:
        return h._answer(409, json.dumps({"error": str(conflict), "url": url}).encode())
    return h._json({"url": url, "name": repo, "id": repo})


def branch(h: _Handler, hub: Hub, kind: str, repo: str, branch: str) -> None:
    h.writable(hub, kind, repo)
    try:
        hub.store.branch(kind, repo, branch)
    except Conflict as conflict:
        raise Refused(409, str(conflict)) from None
    h._json({})


def info(h: _Handler, hub: Hub, kind: str, repo: str, revision: str | None = None) -> None:
    repository = h.readable(hub, kind, repo)
    sha, files = h.files_at(hub, kind, repo, revision or "main")
    h._json(
        {
            "id": repo,
            "sha": sha,
            "private": repository["private"],
            "gated": "auto" if repository["gated"] else False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in files],
        }
    )


def tree(h: _Handler, hub: Hub, kind: str, repo: str, revision: str, path: str | None = None) -> None:
    h.readable(hub, kind, repo)
    _, files = h.files_at(hub, kind, repo, revision)
    listed = [entry.to_json() for name, entry in sorted(files.items()) if name.startswith(path or "")]
    start = int(h.query.get("cursor", ["0"])[0])
    headers = {}
    if start + PAGE < len(listed):
        headers["Link"] = f'<{hub.url}{h.route}?recursive=True&cursor={start + PAGE}>; rel="next"'
    h._json(listed[start : start + PAGE], headers)


def paths_info(h: _Handler, hub: Hub, kind: str, repo: str, revision: str) -> None:
    h.readable(hub, kind, repo)
    _, files = h.files_at(hub, kind, repo, revision)
    paths = parse_qs(h.body.decode())["paths"] if not h.body.startswith(b"{") else json.loads(h.body)["paths"]
    h._json([files[path].to_json() for path in paths if path in files])


def refs(h: _Handler, hub: Hub, kind: str, repo: str) -> None:
    heads = h.readable(hub, kind, repo)["heads"]
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in heads.items()]
    h._json({"branches": branches, "converts": [], "tags": []})


def validate_yaml(h: _Handler, hub: Hub) -> None:
    request = json.loads(h.body)
    errors = errors_of(request["content"]) if request["repoType"] == "model" else []
    response = {"errors": [{"message": error} for error in errors], "warnings": []}
    h._answer(400 if errors else 200, json.dumps(response).encode())


def preupload(h: _Handler, hub: Hub, kind: str, repo: str, revision: str) -> None:
    h.writable(hub, kind, repo)
    _, files = h.files_at(hub, kind, repo, revision)
    entries = []
    for file in json.loads(h.body)["files"]:
        large = file["path"].endswith(LARGE) or file["size"] > 10_000_000
        existing = files.get(file["path"])
        entries.append(
            {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                **({"oid": existing.etag} if existing else {}),
            }
        )
    h._json({"files": entries})


def lfs_batch(h: _Handler, hub: Hub, kind: str, repo: str) -> None:
    h.writable(hub, kind, repo)
    entries = []
    for entry in json.loads(h.body)["objects"]:
        oid, size = entry["oid"], entry["size"]
        if hub.store.object(oid).exists():
            entries.append(entry)
            continue
        upload: dict[str, Any] = {"href": f"{hub.url}/lfs/{oid}", "header": {}}
        if size > hub.part_size:
            parts = range(1, -(-size // hub.part_size) + 1)
            upload["header"] = {"chunk_size": str(hub.part_size), **{str(i): f"{hub.url}/lfs/{oid}/{i}" for i in parts}}
        entries.append({**entry, "actions": {"upload": upload, "verify": {"href": f"{hub.url}/lfs/{oid}/verify"}}})
    h._json({"transfer": "multipart", "objects": entries})


def lfs_put(h: _Handler, hub: Hub, oid: str) -> None:
    if hashlib.sha256(h.body).hexdigest() != oid:
        raise Refused(400, "these bytes have another hash")
    hub.store.put_object(h.body, oid)
    h._answer(200)


def lfs_put_part(h: _Handler, hub: Hub, oid: str, part: str) -> None:
    hub.parts.setdefault(oid, {})[int(part)] = h.body
    h._answer(200, headers={"ETag": f'"{part}"'})


def lfs_complete(h: _Handler, hub: Hub, oid: str) -> None:
    numbers = [part["partNumber"] for part in json.loads(h.body)["parts"]]
    data = b"".join(hub.parts[oid][number] for number in numbers)
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, "these parts have another hash")
    hub.store.put_object(data, oid)
    h._json({"success": True})


def lfs_verify(h: _Handler, hub: Hub, oid: str) -> None:
    file = hub.store.object(oid)
    if not file.exists() or file.stat().st_size != json.loads(h.body)["size"]:
        raise Refused(404, "no such object")
    h._json({})


def commit(h: _Handler, hub: Hub, kind: str, repo: str, revision: str) -> None:
    h.writable(hub, kind, repo)
    h.files_at(hub, kind, repo, revision)
    lines = [json.loads(line) for line in h.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    files: dict[str, bytes | Entry] = {}
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if not hub.store.object(value["oid"]).exists():
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = Entry(value["path"], value["size"], value["oid"][:40], value["oid"])
    try:
        oid = hub.store.commit(kind, repo, revision, header["summary"], files, header.get("parentCommit"))
    except Conflict as conflict:
        raise Refused(412, str(conflict)) from None
    h._json({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{repo}/commit/{oid}", "hookOutput": ""})


def resolve(h: _Handler, hub: Hub, kind: str, repo: str, revision: str, path: str) -> None:
    if h.readable(hub, kind, repo)["gated"]:
        raise Refused(401 if h.token is None else 403, f"Access to {kind[:-1]} {repo} is restricted.", "GatedRepo")
    sha, files = h.files_at(hub, kind, repo, revision)
    if path not in files:
        raise Refused(404, "Entry not found", "EntryNotFound")
    entry = files[path]
    data = hub.store.object(entry.etag).read_bytes()
    headers = {"ETag": f'"{entry.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    headers["Content-Type"] = "application/octet-stream"
    byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", h.headers.get("Range") or "")
    if not byte_range:
        return h._answer(200, data, headers)
    start, end = int(byte_range[1]), int(byte_range[2] or len(data) - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return h._answer(206, data[start : end + 1], headers)


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"{REPO}/branch/(?P<branch>.+)", branch),
    ("GET", rf"{REPO}/refs", refs),
    ("GET", rf"{REPO}/tree/(?P<revision>refs/[^/]+/[^/]+|[^/]+)(?:/(?P<path>.+))?", tree),
    ("POST", rf"{REPO}/paths-info/(?P<revision>.+)", paths_info),
    ("POST", rf"{REPO}/preupload/(?P<revision>.+)", preupload),
    ("POST", rf"{REPO}/commit/(?P<revision>.+)", commit),
    ("GET", rf"{REPO}/revision/(?P<revision>.+)", info),
    ("GET", REPO, info),
    ("POST", rf"{FILE}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})", lfs_complete),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", lfs_put_part),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", lfs_verify),
    ("GET", rf"{FILE}/resolve/(?P<revision>refs/[^/]+/[^/]+|[^/]+)/(?P<path>.+)", resolve),
]
