"""A judge at an OpenAI-compatible endpoint: POST {url}/chat/completions."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit, urlunsplit

import httpx

from mlx_dpo.errors import UserError, Where
from mlx_dpo.judges.judge import Comparison, IndexedValues, Judge, JudgeSpec
from mlx_dpo.judges.rubric_prompt import judge_messages, parse_verdict, rubric_digest
from mlx_dpo.utils.parallel_map import map_as_completed
from mlx_dpo.utils.retry import retry, retry_after_seconds
from mlx_dpo.utils.safe_text import redact_url_secrets, url_origin

TRANSIENT_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
MAX_RETRY_DELAY = 120.0


@dataclass(frozen=True)
class EndpointJudge(Judge):
    """A chat model at an OpenAI-compatible API.

    Attributes:
        url: with or without /chat/completions; a user and password in it are sent, and so is its query.
        model: the model's name at the endpoint.
        api_key_env: environment variable that holds the API key, if the endpoint needs one; no message shows the key.
        timeout: seconds without an answer after which a request fails.
        max_attempts: requests for one comparison, where they fail for a reason that may pass.
        first_delay: seconds before the second attempt; doubles with each further one, unless the endpoint names it.
        max_concurrency: simultaneous requests.
        rubric: the prompt; see `rubric_prompt`.
    """

    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    max_attempts: int = 6
    first_delay: float = 1.0
    max_concurrency: int = 4
    rubric: str | None = None
    takes_rubric = True

    @classmethod
    def accepts(cls, text: str) -> bool:
        """An http or https URL."""
        return text.startswith(("http://", "https://"))

    @classmethod
    def from_spec(cls, spec: JudgeSpec) -> EndpointJudge:
        """Check that a model is named."""
        if not spec.model:
            hint = "Name the model with --judge-model, as the endpoint calls it."
            raise UserError("--judge-model is required for an endpoint", field="judge", hint=hint)
        return cls(spec.text, spec.model, spec.api_key_env, rubric=spec.rubric)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The model and the endpoint, without what may be secret in its URL."""
        return f"{self.model} at {url_origin(self.url)}"

    @property
    def identity(self) -> str | None:
        """The address, the model and a digest of the prompt, without what may be secret in the URL."""
        parts = urlsplit(_completions_url(self.url))
        return f"endpoint {url_origin(self.url)}{parts.path} {self.model} {rubric_digest(self.rubric)}"

    def check(self) -> None:
        """Judge one comparison."""
        self.verdicts([Comparison("What is 1 + 1?", "It is 2.", "It is 3.")])

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Send a request for each comparison; after the first that fails for good, no more are sent."""
        verdicts = IndexedValues()
        for arrived in self.iter_verdicts(comparisons):
            verdicts |= arrived
        return [verdicts[i] for i in range(len(comparisons))]

    def iter_verdicts(self, comparisons: Sequence[Comparison]) -> Iterator[IndexedValues]:
        """Send a request for each comparison, and yield verdicts as they arrive."""
        with httpx.Client(timeout=self.timeout) as client:  # closed by Ctrl-C too, which waits for no request
            judge = partial(self._verdict, client)
            for i, verdict in map_as_completed(judge, comparisons, num_threads=self.max_concurrency):
                yield {i: verdict}

    def _verdict(self, client: httpx.Client, comparison: Comparison) -> float | None:
        def request() -> str | None:
            response = client.post(_completions_url(self.url), json=body, headers=headers).raise_for_status()
            return response.json()["choices"][0]["message"]["content"]

        headers = {"User-Agent": "mlx-dpo"}
        if key := os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        body = {"model": self.model, "messages": judge_messages(comparison, self.rubric), "temperature": 0}
        try:
            content = retry(
                request,
                _is_transient,
                attempts=self.max_attempts,
                first_delay=self.first_delay,
                longest_delay=MAX_RETRY_DELAY,
                retry_after=retry_after_seconds,
                jitter=lambda: random.random() / 4,
            )
        except (LookupError, TypeError):
            raise self._error("the response is not a chat completion") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            attempts = f"{self.max_attempts} attempts failed, the last with " if _is_transient(error) else ""
            raise self._error(attempts + _describe(error), self._hint(error)) from None
        return parse_verdict(content or "")

    def _hint(self, error: Exception) -> str | None:
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
        if status in (401, 403):
            state = "is set, and was sent" if os.environ.get(self.api_key_env) else "is not set"
            return f"The key is read from the environment variable {self.api_key_env}, which {state}."
        return "Does the URL end before /chat/completions, as in https://.../v1?" if status in (404, 405) else None

    def _error(self, message: str, hint: str | None = None) -> UserError:
        key = os.environ.get(self.api_key_env)
        message = message.replace(key, "***") if key else message  # an endpoint may repeat the key
        message = redact_url_secrets(message, self.url)
        where = Where(url_origin(self.url))
        return UserError(f"the request to the judge failed: {message}", where=where, field="judge", hint=hint)


def _completions_url(url: str) -> str:
    """The URL to post to, with the user, password and query of the given one."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _is_transient(error: Exception) -> bool:
    """Whether another attempt may succeed: after no connection, a broken one, no JSON, or a status that may pass."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in TRANSIENT_STATUS
    return isinstance(error, (httpx.TransportError, ValueError))


def _describe(error: Exception) -> str:
    """An error in one line, with the endpoint's own message if it sent one."""
    if not isinstance(error, httpx.HTTPStatusError):
        return str(error) or type(error).__name__
    response = error.response
    try:
        detail = response.json()["error"]
        text = detail["message"] if isinstance(detail, dict) else str(detail)
    except (ValueError, LookupError, TypeError):
        text = response.text
    return f"HTTP {response.status_code}: {' '.join(text.split())[:300] or response.reason_phrase}"
