"""The endpoint judge, against a local OpenAI-compatible server that fails on purpose."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.evaluation_run import EvaluationRun
from mlx_dpo.judges.endpoint_judge import EndpointJudge
from mlx_dpo.judges.judge import Comparison
from mlx_dpo.judges.rubric_prompt import judge_messages
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.utils.stop_flag import StopRequested, stop_on
from tests.judges.local_endpoint import KEY, Endpoint
from tests.judges.local_endpoint import endpoint as endpoint

COMPARISONS = [Comparison(f"Question {i}", "good" if i % 2 else "bad", "bad" if i % 2 else "good") for i in range(6)]
RIGHT = [float(i % 2) for i in range(6)]


def judge(endpoint: Endpoint, **settings: Any) -> EndpointJudge:
    return EndpointJudge(endpoint.url, "judge-1", "JUDGE_KEY", **{"first_delay": 0.01, "timeout": 5, **settings})


def test_a_request_has_the_form_of_the_openai_api(endpoint: Endpoint) -> None:
    assert judge(endpoint).verdicts(COMPARISONS) == RIGHT
    assert len(endpoint.requests) == 6
    for _, path, headers, body in endpoint.requests:
        assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
        assert headers["Content-Type"] == "application/json"
        assert body["model"] == "judge-1" and body["temperature"] == 0
    prompts = {body["messages"][0]["content"] for *_, body in endpoint.requests}
    assert prompts == {judge_messages(comparison)[0]["content"] for comparison in COMPARISONS}


def test_the_urls_path_and_the_key_are_optional(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    for url in (endpoint.url + "/", endpoint.url + "/chat/completions"):
        assert EndpointJudge(url, "m", "JUDGE_KEY").verdicts(COMPARISONS[:1]) == RIGHT[:1]
    assert all("Authorization" not in headers and path.count("chat") == 1 for _, path, headers, _ in endpoint.requests)


@pytest.mark.parametrize("failure", ["cut", "nonsense", (500, {}, "oh"), (429, {}, "slow"), (503, {}, "")])
def test_transient_failures_are_retried(endpoint: Endpoint, failure: Any) -> None:
    endpoint.failures = [failure, failure]
    assert judge(endpoint).verdicts(COMPARISONS) == RIGHT
    assert len(endpoint.requests) == 8


def test_retry_after_is_followed(endpoint: Endpoint) -> None:
    endpoint.failures = [(429, {"Retry-After": "0.4"}, "slow down")]
    assert judge(endpoint, max_concurrency=1).verdicts(COMPARISONS[:1]) == RIGHT[:1]
    (first, *_), (second, *_) = endpoint.requests
    assert 0.4 <= second - first < 2


def test_a_silent_endpoint_times_out_and_is_retried(endpoint: Endpoint) -> None:
    endpoint.failures = ["silent"]
    assert judge(endpoint, timeout=0.2).verdicts(COMPARISONS[:1]) == RIGHT[:1]


def test_a_lasting_failure_is_reported_with_its_reason(endpoint: Endpoint) -> None:
    endpoint.failures = [(500, {}, '{"error": {"message": "it is\\nbroken"}}')] * 99
    with pytest.raises(UserError, match="failed: 3 attempts failed, the last with HTTP 500: it is broken"):
        judge(endpoint, max_attempts=3).verdicts(COMPARISONS)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((401, {}, json.dumps({"error": {"message": f"Bad key {KEY}"}})), r"HTTP 401: Bad key \*\*\*\n.*JUDGE_KEY"),
        ((404, {}, "not here"), r"HTTP 404: not here\n.*/v1"),
        ((400, {}, '{"error": "no such model"}'), "HTTP 400: no such model"),
        ("empty", "not a chat completion"),
    ],
)
def test_permanent_failures_are_not_retried(endpoint: Endpoint, failure: Any, message: str) -> None:
    endpoint.failures = [failure] * 99
    with pytest.raises(UserError, match=message) as raised:
        judge(endpoint, max_concurrency=1).verdicts(COMPARISONS)
    assert KEY not in str(raised.value) and len(endpoint.requests) <= 2


def test_the_judge_is_checked_before_the_evaluation(endpoint: Endpoint) -> None:
    judge(endpoint).check()
    endpoint.failures = [(401, {}, "no key")]
    sampling = SamplingParams(max_tokens=4)
    evaluation = EvaluationRun(TrainConfig(), [Path("a")], [], judge(endpoint), 5, sampling, tasks=[], task_limit=None)
    with pytest.raises(UserError, match="HTTP 401: no key"):
        evaluation.check()
    assert len(endpoint.requests) == 2


def test_what_arrives_before_a_failure_is_kept(endpoint: Endpoint) -> None:
    endpoint.failures = [None, None, (401, {}, "no more")]
    verdicts = judge(endpoint, max_concurrency=1).iter_verdicts(COMPARISONS)
    assert [next(verdicts), next(verdicts)] == [{0: 0.0}, {1: 1.0}]
    with pytest.raises(UserError, match="no more"):
        next(verdicts)
    assert len(endpoint.requests) == 3


def test_an_interruption_waits_for_no_request(endpoint: Endpoint) -> None:
    endpoint.failures = ["stall"] * 4
    began, stop = time.monotonic(), threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(StopRequested), stop_on(stop):
        judge(endpoint).verdicts(COMPARISONS)
    assert time.monotonic() - began < 10
    endpoint.stalled.set()
    time.sleep(0.2)
    assert len(endpoint.requests) == 4


def test_a_refused_connection() -> None:
    with pytest.raises(UserError, match=r"127.0.0.1:9.*failed: 2 attempts failed.*refused"):
        EndpointJudge("http://127.0.0.1:9/v1", "m", max_attempts=2, first_delay=0.01).verdicts(COMPARISONS[:1])


def test_secrets_in_the_url_are_sent_and_never_shown(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    host = endpoint.url.removeprefix("http://").removesuffix("/v1")
    secret = EndpointJudge(f"http://user:p%40ssw@{host}/v1?key=QUERYKEY", "m", "JUDGE_KEY", max_attempts=1)
    assert secret.verdicts(COMPARISONS[:1]) == RIGHT[:1]
    _, path, headers, _ = endpoint.requests[0]
    assert path == "/v1/chat/completions?key=QUERYKEY"
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"user:p@ssw"
    assert secret.name == f"m at http://{host}"
    endpoint.failures = [(400, {}, "user p@ssw QUERYKEY http://user:p%40ssw@host?key=QUERYKEY")]
    unreachable = EndpointJudge("http://user:p%40ssw@127.0.0.1:1/v1?key=QUERYKEY", "m", "JUDGE_KEY", max_attempts=1)
    for judge_, where in ((secret, host), (unreachable, "127.0.0.1:1")):
        with pytest.raises(UserError) as raised:
            judge_.verdicts(COMPARISONS[:1])
        text = str(raised.value)
        assert f"http://{where}: " in text
        assert not [word for word in ("user", "p%40ssw", "p@ssw", "QUERYKEY") if word in text], text
