"""Checks of on-policy settings, before anything is loaded."""

from __future__ import annotations

import dataclasses

from mlx_dpo.adapters.adapter_settings import fine_tune_type
from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.settings.on_policy_settings import OnPolicySettings

DEFAULT_MIXTURE_COEF = 0.5
MIN_PROMPT_TOKENS = 16  # room for a prompt that --max-tokens must leave of --max-length


def check_on_policy(
    config: TrainConfig, loss: WeightedLoss, *, has_prompts: bool, has_judge: bool, has_rows: bool
) -> None:
    """Check that on-policy settings fit together, or that none is given without --on-policy.

    Args:
        config: the run's settings.
        loss: its loss.
        has_prompts: whether prompts were given in memory.
        has_judge: whether a judge was given in memory.
        has_rows: whether rows to train on were given in memory.

    Raises:
        UserError: a setting is missing, or has no effect.
    """
    if not config.on_policy:
        _refuse_without_on_policy(config, loss)
        return
    if not (config.prompts or has_prompts):
        hint = "Name a file of prompts with --prompts."
        raise UserError("there are no prompts to answer", field="prompts", hint=hint)
    if not (config.judge or config.reward_model or has_judge):
        hint = "Name a judge: --judge FILE.py:NAME, the URL of an API, an adapter, or a model; or a --reward-model."
        raise UserError("nobody compares the answers", field="judge", hint=hint)
    if config.max_tokens > config.max_length - MIN_PROMPT_TOKENS:
        hint = f"Raise --max-length from {config.max_length}, or lower --max-tokens."
        raise UserError("completions leave no room for prompts", field="max_tokens", hint=hint)
    _check_replay(config, loss, has_rows)
    _check_reference(config, loss)
    _check_opponent(config, loss)


def num_replayed(config: TrainConfig) -> int:
    """Return how many pairs of an optimizer batch come from --data."""
    return max(1, round(config.replay * config.batch_size)) if config.replay else 0


def _refuse_without_on_policy(config: TrainConfig, loss: WeightedLoss) -> None:
    for field in dataclasses.fields(OnPolicySettings):
        if getattr(config, field.name) != field.default:
            raise UserError("this has no effect without --on-policy", field=field.name)
    if loss.opponent is not Opponent.POLICY:
        message = f"the loss {config.loss!r} is for training on the policy's own answers"
        raise UserError(message, field="loss", hint="Add --on-policy, --prompts and --judge.")


def _check_replay(config: TrainConfig, loss: WeightedLoss, has_rows: bool) -> None:
    if (config.data or has_rows) and not config.replay:
        hint = "Give the share of each batch that they are, such as --replay 0.25; held-out pairs are --valid-data."
        raise UserError("with --on-policy, pairs of --data are used by --replay only", field="data", hint=hint)
    if not config.replay:
        return
    if loss.unpaired:
        message = f"the loss {config.loss!r} takes single completions, with which pairs can't be mixed"
        raise UserError(message, field="replay", hint="Leave it out.")
    if num_replayed(config) >= config.batch_size:
        hint = "Raise --batch-size, or lower --replay."
        raise UserError("no room is left in a batch for sampled pairs", field="replay", hint=hint)


def _check_reference(config: TrainConfig, loss: WeightedLoss) -> None:
    if loss.needs_reward_head:
        hint = "Train it on pairs, without --on-policy."
        raise UserError(
            f"the loss {config.loss!r} trains a reward model, which writes no answers", field="loss", hint=hint
        )
    if config.reference not in POLICY_REFERENCES:
        message = "new answers need the reference in every step, and another model is not kept in memory"
        raise UserError(message, field="reference", hint="Use --reference initial, base or none.")
    if fine_tune_type(config) == "full" and config.reference != "none":
        message = "new answers need the reference in every step, which full fine-tuning does not keep"
        raise UserError(message, field="fine_tune_type", hint="Use lora or dora, or a loss with --reference none.")


def _check_opponent(config: TrainConfig, loss: WeightedLoss) -> None:
    if config.nash_md_mixture_coef is not None and loss.opponent is not Opponent.MIXTURE:
        raise UserError(f"the loss {config.loss!r} has no mixture", field="nash_md_mixture_coef")
    if loss.opponent in (Opponent.POLICY, Opponent.NONE):
        return
    if config.reference == "none":
        message = f"the loss {config.loss!r} compares the policy's answers with those of its reference"
        raise UserError(message, field="reference", hint="Use --reference initial or base.")
    if config.num_completions != 2:
        message = f"the loss {config.loss!r} compares two completions, the policy's and another one's"
        raise UserError(message, field="num_completions", hint="Leave it out.")
    if loss.opponent is Opponent.MIXTURE and len(loss.terms) > 1:
        message = f"{config.loss!r}: nash_md takes the policy's completion alone, and can't be summed with other losses"
        raise UserError(message, field="loss")
