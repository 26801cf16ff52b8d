"""What rollouts.jsonl records of a rollout."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.training.on_policy.rollout import Rollout


def rollout_record(step: int, prompt: TextOrMessages, rollout: Rollout) -> dict[str, Any]:
    """Return a line of rollouts.jsonl.

    Args:
        step: optimizer steps done, this one included.
        prompt: the prompt.
        rollout: with verdicts.

    Returns:
        `step`, `position` (number of the prompt among all that were drawn), `prompt_index` (in the file, from 0),
        `prompt`; of each completion `completions`, `tokens`, `finish_reasons`, `scores`, `entropies` and `kls`
        (estimates in nats per token; null if the completion is not the policy's); `win_rates` of a judge that compares;
        `chosen` and `rejected`, the indices of the pair; and `win_rate`, the preference for the first completion, if
        the loss takes that.
    """
    completions = rollout.completions
    return {
        "step": step,
        "position": rollout.position,
        "prompt_index": rollout.prompt,
        "prompt": prompt,
        "completions": [completion.text for completion in completions],
        "tokens": [len(completion.token_ids) for completion in completions],
        "finish_reasons": [completion.finish_reason for completion in completions],
        "scores": list(rollout.scores),
        "win_rates": rollout.win_rates,
        "entropies": [completion.entropy for completion in completions],
        "kls": [completion.kl for completion in completions],
        "chosen": rollout.chosen,
        "rejected": rollout.rejected,
        "win_rate": rollout.win_rate,
    }
