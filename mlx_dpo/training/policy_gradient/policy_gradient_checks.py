"""Settings of PPO and RLOO: what they imply, and checks before anything is loaded."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.objectives import LOSS_SETTINGS, WeightedLoss
from mlx_dpo.settings.policy_gradient_settings import PolicyGradientSettings

DEFAULT_EPOCHS = {True: 4, False: 1}  # with a value head, as TRL's PPO, and without
DEFAULT_RLOO_K, DEFAULT_KL_HORIZON = 4, 10_000

# Settings of other on-policy losses, with what takes their place.
_OTHER_SETTINGS = {
    "num_completions": "Use --rloo-k with --loss rloo; ppo samples one answer to each prompt.",
    "rollout_batches": "Use --num-mini-batches.",
    "replay": "Leave it out: what is trained on is sampled.",
    "reference_sync_steps": "Leave it out: the reference is fixed.",
    "top_p": "Leave it out: ratios of probabilities need samples of the policy itself.",
    "valid_data": "Leave it out, and evaluate the adapter with `mlx-dpo evaluate`.",
}


def resolve_policy_gradient(config: TrainConfig, loss: WeightedLoss) -> TrainConfig:
    """Fill in what PPO and RLOO imply: that they are on-policy, and the defaults of their settings.

    Args:
        config: the run's settings.
        loss: its loss.

    Returns:
        The settings; unchanged for other losses.

    Raises:
        UserError: a setting is given that the loss does not use.
    """
    function = loss.policy_gradient
    if function is None:
        _refuse_settings(config)
        return config
    _refuse_unused(config, function.name)
    defaults: dict[str, Any] = {
        "num_ppo_epochs": DEFAULT_EPOCHS[function.needs_value_head],
        "num_mini_batches": 1,
        "kl_horizon": None if config.kl_target is None else DEFAULT_KL_HORIZON,
        "rloo_k": None if function.needs_value_head else DEFAULT_RLOO_K,
    }
    values = {name: default for name, default in defaults.items() if getattr(config, name) is None}
    return config.replace(on_policy=True, **values)


def check_policy_gradient(config: TrainConfig, loss: WeightedLoss, *, has_judge: bool, has_valid_rows: bool) -> None:
    """Check that the settings of PPO or RLOO fit together; nothing for other losses.

    Args:
        config: the run's settings, resolved.
        loss: its loss.
        has_judge: whether a judge was given in memory.
        has_valid_rows: whether held-out rows were given in memory.

    Raises:
        UserError: settings contradict each other.
    """
    if config.reward_model and (config.judge or has_judge):
        raise UserError("there is a judge already", field="reward_model", hint="Give one of the two.")
    if loss.policy_gradient is None:
        return
    if has_valid_rows:
        message = f"the loss {config.loss!r} is not measured on held-out rows"
        raise UserError(message, field="valid_data", hint=_OTHER_SETTINGS["valid_data"])
    if config.reference == "none" and (loss.settings["kl_coef"] or config.kl_target):
        hint = "Give --kl-coef 0 for none, or use --reference initial or base."
        raise UserError("there is no reference that the KL penalty could be of", field="kl_coef", hint=hint)


def completions_per_prompt(config: TrainConfig, loss: WeightedLoss) -> int:
    """Return how many completions of each prompt are sampled."""
    if loss.policy_gradient is None:
        return config.num_completions
    return 1 if loss.policy_gradient.needs_value_head else config.rloo_k or DEFAULT_RLOO_K


def _refuse_settings(config: TrainConfig) -> None:
    """Refuse settings of policy gradients with another loss. Losses' own ones are refused with the loss."""
    for field in fields(PolicyGradientSettings):
        is_allowed = field.name in LOSS_SETTINGS or (field.name == "reward_model" and config.on_policy)
        if not is_allowed and getattr(config, field.name) is not None:
            hint = "It is used by ppo and rloo."
            raise UserError(f"the loss {config.loss!r} does not use it", field=field.name, hint=hint)


def _refuse_unused(config: TrainConfig, name: str) -> None:
    defaults = TrainConfig()
    for field, hint in _OTHER_SETTINGS.items():
        if getattr(config, field) != getattr(defaults, field):
            raise UserError(f"the loss {name!r} does not use it", field=field, hint=hint)
    if name == "ppo" and config.rloo_k is not None:
        raise UserError("the loss 'ppo' does not use it", field="rloo_k", hint="It is used by rloo.")
    if config.kl_horizon is not None and config.kl_target is None:
        raise UserError("this has no effect without --kl-target", field="kl_horizon")
