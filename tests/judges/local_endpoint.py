"""An OpenAI-compatible server on this machine that judges, and fails on purpose."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

KEY = "sk-not-to-be-seen"


class Endpoint(ThreadingHTTPServer):
    """Prefers the answer `good`; the first requests get the `failures`, in turn."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures: list[Any] = []
        self.requests: list[tuple[float, str, dict[str, Any], dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.stalled = threading.Event()  # set it to let stalled requests end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing where a client that was interrupted is gone."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((time.monotonic(), self.path, dict(self.headers), body))
            failure = self.server.failures.pop(0) if self.server.failures else None
        if failure == "cut":
            self.connection.close()
        elif failure == "nonsense":
            self._send(200, b"<html>")
        elif failure == "empty":
            self._send(200, b"{}")
        elif failure == "silent":
            time.sleep(1)
        elif failure == "stall":
            self.server.stalled.wait(60)
        elif failure:
            code, headers, text = failure
            self._send(code, text.encode(), headers)
        else:
            text = body["messages"][0]["content"]
            verdict = "A" if "assistant A's answer]\ngood" in text else "B"
            message = {"role": "assistant", "content": f"It is better. [[{verdict}]]"}
            self._send(200, json.dumps({"choices": [{"message": message}]}).encode())

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = Endpoint()
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    yield server
    server.stalled.set()
    server.shutdown()
    server.server_close()
