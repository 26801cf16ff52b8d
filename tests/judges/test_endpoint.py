"""An OpenAI-compatible endpoint on this machine, that also fails on purpose."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.evaluation_run import EvaluationRun
from mlx_dpo.judges.endpoint_judge import EndpointJudge
from mlx_dpo.judges.judge import Comparison
from mlx_dpo.judges.rubric_prompt import judge_messages
from mlx_dpo.sampling.generation import SamplingParams

KEY = "sk-not-to-be-seen"
MATCHES = [Comparison(f"Question {i}", "good" if i % 2 else "bad", "bad" if i % 2 else "good") for i in range(6)]
RIGHT = [float(i % 2) for i in range(6)]


class Endpoint(ThreadingHTTPServer):
    """Prefers the answer `good`; the first requests get what `failures` say, in turn."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures: list[Any] = []
        self.requests: list[tuple[float, str, dict[str, Any], dict[str, Any]]] = []
        self.lock = threading.Lock()

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
        elif failure:
            code, headers, text = failure
            self._send(code, text.encode(), headers)
        else:
            text = body["messages"][0]["content"]
            verdict = "A" if "assistant A's answer]\ngood" in text else "B"
            message = {"role": "assistant", "content": f"Because it says so. [[{verdict}]]"}
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
    server.shutdown()
    server.server_close()


def judge(endpoint: Endpoint, **knobs: Any) -> EndpointJudge:
    return EndpointJudge(endpoint.url, "judge-1", "JUDGE_KEY", **{"pause": 0.01, "timeout": 5, **knobs})


def test_it_is_asked_as_openais_is(endpoint: Endpoint) -> None:
    assert judge(endpoint).verdicts(MATCHES) == RIGHT
    assert len(endpoint.requests) == 6
    for _, path, headers, body in endpoint.requests:
        assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
        assert headers["Content-Type"] == "application/json"
        assert body["model"] == "judge-1" and body["temperature"] == 0
    asked = {body["messages"][0]["content"] for *_, body in endpoint.requests}
    assert asked == {judge_messages(match)[0]["content"] for match in MATCHES}


def test_the_urls_end_and_the_key_may_be_there_or_not(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    for url in (endpoint.url + "/", endpoint.url + "/chat/completions"):
        assert EndpointJudge(url, "m", "JUDGE_KEY").verdicts(MATCHES[:1]) == RIGHT[:1]
    assert all("Authorization" not in headers and path.count("chat") == 1 for _, path, headers, _ in endpoint.requests)


@pytest.mark.parametrize("failure", ["cut", "nonsense", (500, {}, "oh"), (429, {}, "slow"), (503, {}, "")])
def test_what_may_pass_is_tried_again(endpoint: Endpoint, failure: Any) -> None:
    endpoint.failures = [failure, failure]
    assert judge(endpoint).verdicts(MATCHES) == RIGHT
    assert len(endpoint.requests) == 8


def test_it_waits_as_long_as_it_is_asked_to(endpoint: Endpoint) -> None:
    endpoint.failures = [(429, {"Retry-After": "0.4"}, "slow down")]
    assert judge(endpoint, at_once=1).verdicts(MATCHES[:1]) == RIGHT[:1]
    (first, *_), (second, *_) = endpoint.requests
    assert 0.4 <= second - first < 2


def test_a_silent_endpoint_is_not_waited_for(endpoint: Endpoint) -> None:
    endpoint.failures = ["silent"]
    assert judge(endpoint, timeout=0.2).verdicts(MATCHES[:1]) == RIGHT[:1]


def test_what_does_not_pass_is_said(endpoint: Endpoint) -> None:
    endpoint.failures = [(500, {}, '{"error": {"message": "it is\\nbroken"}}')] * 99
    with pytest.raises(UserError, match="failed 3 times, the last time with: HTTP 500: it is broken"):
        judge(endpoint, tries=3).verdicts(MATCHES)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((401, {}, json.dumps({"error": {"message": f"Bad key {KEY}"}})), r"HTTP 401: Bad key \*\*\*\n.*JUDGE_KEY"),
        ((404, {}, "not here"), r"HTTP 404: not here\n.*/v1"),
        ((400, {}, '{"error": "no such model"}'), "HTTP 400: no such model"),
        ("empty", "not that of a chat completion"),
    ],
)
def test_what_can_not_pass_is_asked_once(endpoint: Endpoint, failure: Any, message: str) -> None:
    endpoint.failures = [failure] * 99
    with pytest.raises(UserError, match=message) as raised:
        judge(endpoint, at_once=1).verdicts(MATCHES)
    assert KEY not in str(raised.value) and len(endpoint.requests) <= 2


def test_it_is_tried_before_there_is_much_to_lose(endpoint: Endpoint) -> None:
    judge(endpoint).check()
    endpoint.failures = [(401, {}, "no key")]
    how = SamplingParams(max_tokens=4)
    examination = EvaluationRun(TrainConfig(), [Path("a")], [], judge(endpoint), 5, how, tasks=[], task_limit=None)
    with pytest.raises(UserError, match="HTTP 401: no key"):
        examination.check()
    assert len(endpoint.requests) == 2


def test_nobody_is_there() -> None:
    with pytest.raises(UserError, match=r"127.0.0.1:9.*can't be asked: it failed 2 times.*refused"):
        EndpointJudge("http://127.0.0.1:9/v1", "m", max_attempts=2, first_delay=0.01).verdicts(MATCHES[:1])
