"""A prompt with the completions that were sampled for it, and what the judge makes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlx_dpo.data.encoded_example import TokenIds


@dataclass(frozen=True)
class RolloutCompletion:
    """A sampled completion.

    Attributes:
        token_ids: as sampled, with the end-of-sequence token if it was sampled.
        text: its text.
        finish_reason: "stop", or "length" if it was cut off.
        logp: log-prob under the policy at temperature 1, nats, summed over its tokens; None if another model wrote it.
        reference_logp: that under the reference; None without a reference.
        token_logps: for a policy gradient, log-probs of its tokens under the policy that sampled it, nats, at the
            temperature of the sampling.
        reference_token_logps: likewise under the reference; equal to `token_logps` without one.
        token_values: values of the states before each token, of a value head; empty without one.
    """

    token_ids: TokenIds
    text: str
    finish_reason: str
    logp: float | None = None
    reference_logp: float | None = None
    token_logps: tuple[float, ...] = ()
    reference_token_logps: tuple[float, ...] = ()
    token_values: tuple[float, ...] = ()

    @property
    def entropy(self) -> float | None:
        """Estimate of the policy's entropy per token, nats: -log p of what was sampled."""
        return None if self.logp is None else -self.logp / len(self.token_ids)

    @property
    def kl(self) -> float | None:
        """Estimate of KL(policy || reference) per token, nats."""
        if self.logp is None or self.reference_logp is None:
            return None
        return (self.logp - self.reference_logp) / len(self.token_ids)


@dataclass(frozen=True)
class Rollout:
    """The completions of a prompt, with verdicts. Of some losses, the last completion is not the policy's.

    Attributes:
        position: number of the prompt among all that were drawn; its random numbers depend on it.
        prompt: index of the prompt in the file.
        completions: what was sampled.
        scores: the judge's score of each completion, or its mean win rate; None without a verdict.
        win_rates: of each completion against each other one; None if the judge gives scores.
        chosen: index of the completion to prefer; None if the verdicts give no pair.
        rejected: index of the other one.
        win_rate: preference for the first completion over the second, from 0 to 1, if the loss takes that.
    """

    position: int
    prompt: int
    completions: tuple[RolloutCompletion, ...]
    scores: tuple[float | None, ...] = ()
    win_rates: tuple[tuple[float | None, ...], ...] | None = None
    chosen: int | None = None
    rejected: int | None = None
    win_rate: float | None = None

    @property
    def is_usable(self) -> bool:
        """Whether there is something to train on."""
        return self.chosen is not None or self.win_rate is not None

    @property
    def policy_completions(self) -> list[int]:
        """Indices of the policy's own completions."""
        return [i for i, completion in enumerate(self.completions) if completion.logp is not None]

    def to_mapping(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Rollout:
        """Make it from what `to_mapping` returned, read from JSON."""
        completions: list[dict[str, Any]] = [
            {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}
            for item in values["completions"]
        ]
        win_rates = values["win_rates"]
        return cls(
            **{
                **values,
                "completions": tuple(RolloutCompletion(**item) for item in completions),
                "scores": tuple(values["scores"]),
                "win_rates": None if win_rates is None else tuple(map(tuple, win_rates)),
            }
        )


def finite_or_none(values: np.ndarray) -> tuple[float | None, ...]:
    """Numbers as plain values: None in place of NaN."""
    return tuple(None if np.isnan(value) else float(value) for value in values)
