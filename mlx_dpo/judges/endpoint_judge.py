"""A judge behind an OpenAI-compatible endpoint: POST {url}/chat/completions."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.judges.judge import Comparison, Judge
from mlx_dpo.judges.rubric_prompt import judge_messages, parse_verdict

TRANSIENT_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)  # states that may be another a while later
MAX_RETRY_DELAY = 120.0


@dataclass(frozen=True)
class EndpointJudge(Judge):
    """A chat model elsewhere.

    Attributes:
        url: with or without /chat/completions.
        model: as the endpoint calls it.
        key_variable: the environment variable that holds the key, if one is asked for; the key itself is in no message.
        timeout: seconds, of one request.
        tries: of one request, where it fails in a way that may pass.
        pause: seconds before the second try, and twice as much before each one after, unless the endpoint says.
        at_once: requests.
    """

    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    max_attempts: int = 6
    first_delay: float = 1.0
    max_concurrency: int = 4

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.model} at {self.url}"

    def check(self) -> None:
        self._verdict(Comparison("What is 1 + 1?", "It is 2.", "It is 3."))

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        with ThreadPoolExecutor(self.max_concurrency) as pool:
            asked = [pool.submit(self._verdict, match) for match in comparisons]
            try:
                return [one.result() for one in asked]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what is wrong with one is wrong with all
                raise

    def _verdict(self, comparison: Comparison) -> float | None:
        body = {"model": self.model, "messages": judge_messages(comparison), "temperature": 0}
        try:
            said = self._post(body)["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise self._error("its answer is not that of a chat completion") from None
        return parse_verdict(said or "")

    def _post(self, body: dict[str, Any]) -> Any:
        for attempt in range(1, self.max_attempts + 1):
            try:
                with urllib.request.urlopen(self._request(body), timeout=self.timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                reason, delay = f"HTTP {error.code}: {error_message(error)}", _retry_after(error)
                if error.code not in TRANSIENT_STATUS:
                    raise self._error(reason, self._hint(error.code)) from None
            except (OSError, http.client.HTTPException, ValueError) as error:  # no connection, cut off, not JSON
                reason, delay = str(getattr(error, "reason", error)) or type(error).__name__, None
            if attempt < self.max_attempts:
                doubled = self.first_delay * 2 ** (attempt - 1) * (1 + random.random() / 4)
                time.sleep(min(doubled if delay is None else delay, MAX_RETRY_DELAY))
        raise self._error(f"it failed {self.max_attempts} times, the last time with: {reason}")

    def _request(self, body: dict[str, Any]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "User-Agent": "mlx-dpo"}
        if key := os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        base = self.url.rstrip("/").removesuffix("/chat/completions")
        return urllib.request.Request(f"{base}/chat/completions", json.dumps(body).encode(), headers)

    def _hint(self, code: int) -> str | None:
        if code in (401, 403):
            there = "is set, and was sent" if os.environ.get(self.api_key_env) else "is not set"
            return f"The key is read from the environment variable {self.api_key_env}, which {there}."
        return "Does the URL end where /chat/completions begins, as in https://.../v1?" if code in (404, 405) else None

    def _error(self, message: str, hint: str | None = None) -> UserError:
        key = os.environ.get(self.api_key_env)
        message = message.replace(key, "***") if key else message  # an endpoint may repeat it
        return UserError(f"the judge can't be asked: {message}", where=Where(self.url), field="judge", hint=hint)


def error_message(error: urllib.error.HTTPError) -> str:
    """What an endpoint says of its error, in one line."""
    try:
        text = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        said = json.loads(text)["error"]
        text = said["message"] if isinstance(said, dict) else str(said)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:300] or error.reason


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the endpoint asks to wait: a number, or a date."""
    value = error.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
