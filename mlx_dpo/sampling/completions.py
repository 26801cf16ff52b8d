"""How completions are sampled, and what is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlx_dpo.errors import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How responses are sampled.

    As in mlx-lm, `top_p` and `min_p` select tokens by their probabilities at temperature 1; the temperature then
    applies to the tokens that are left.

    Attributes:
        max_tokens: longest response, in tokens.
        temperature: 0 for greedy decoding, which ignores `top_p` and `min_p`.
        top_p: probability mass of the most likely tokens to sample from; 1 for all tokens.
        seed: of the sampling.
        min_p: least probability of a token to sample, as a share of that of the most likely token; 0 for all tokens.
        stop: texts that end a completion, which then ends before them.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values. Raises `UserError`."""
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        _require(self.temperature >= 0, "temperature", "must not be negative")
        _require(0 <= self.top_p <= 1, "top_p", "must be between 0 and 1")
        _require(0 <= self.min_p <= 1, "min_p", "must be between 0 and 1")
        _require(not isinstance(self.stop, str) and all(self.stop), "stop", "must be a list of texts, none empty")


@dataclass(frozen=True)
class SampledCompletion:
    """A completion sampled from a policy.

    Attributes:
        token_ids: as sampled, with the end-of-sequence token if it was sampled.
        text: what follows the prompt's text, without the end-of-sequence token, and without the stop text and what
            follows it. After a chat template it may begin with a space.
        finish_reason: "stop" at an end-of-sequence token or a stop text, "length" at `max_tokens`.
        logps: log-prob of each token under the model at temperature 1, before `top_p` and `min_p`, in nats.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    logps: tuple[float, ...]


@dataclass(frozen=True)
class PartialCompletion:
    """A completion so far.

    Attributes:
        index: among the completions of the prompt.
        text: without a last character of which only some tokens are sampled.
        num_tokens: sampled so far.
        finish_reason: None while it is being sampled, else as in `SampledCompletion`.
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"] | None = None


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise UserError(message, field=field)
