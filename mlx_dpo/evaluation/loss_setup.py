"""Build the loss of a `TrainConfig`, and fill in the settings that depend on the loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_dpo.adapters.adapter_folder import is_reward_model, refuse_reward_model
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.objectives import LOSS_SETTINGS, WeightedLoss


def loss_from_config(config: TrainConfig) -> WeightedLoss:
    """Build the loss of a config.

    Raises:
        UserError: the loss is unknown, or a setting does not apply to it.
    """
    likelihood = f",sft={config.rpo_alpha}" if config.rpo_alpha else ""
    return WeightedLoss.parse(
        config.loss + likelihood,
        {name: getattr(config, name) for name in LOSS_SETTINGS},
        use_weighting=config.use_weighting,
        ld_alpha=1.0 if config.ld_alpha is None else config.ld_alpha,
    )


def preference_loss_from_config(config: TrainConfig) -> WeightedLoss:
    """Build the loss of a config that preferences are measured with.

    Raises:
        UserError: the loss is unknown, a setting does not apply to it, or it is a policy gradient.
    """
    loss = loss_from_config(config)
    if loss.policy_gradient:
        hint = "Leave --loss out, for DPO's."
        raise UserError(f"the loss {config.loss!r} is not made of preferences", field="loss", hint=hint)
    return loss


def config_for_adapters(config: TrainConfig, adapters: Sequence[str | Path | None]) -> TrainConfig:
    """Return the settings to measure adapters with: those of policies are as given, those of reward models their runs'.

    Args:
        config: settings, with the default loss if none was chosen.
        adapters: adapter folders; None is the model without an adapter.

    Raises:
        UserError: some are reward models and others are not, or a loss for policies was chosen.
    """
    folders = [folder for folder in adapters if folder is not None and is_reward_model(folder)]
    if not folders:
        return config
    if len(folders) < len(adapters):
        message = f"{folders[0]} is a reward model, and can't be compared with a policy"
        raise UserError(message, field="adapter_path", hint="Evaluate them in two commands.")
    if config.loss != TrainConfig.loss:
        if loss_from_config(config).needs_reward_head:
            return config
        message = f"{folders[0]} is a reward model, which the loss {config.loss!r} is not for"
        raise UserError(message, field="loss", hint="Leave --loss out.")
    file = Path(folders[0]) / CONFIG_FILE
    run = read_yaml(file) if file.exists() else {}
    settings = {name: run[name] for name in ("loss", "center_rewards_coefficient") if run.get(name) is not None}
    return config.replace(**{"loss": "reward", **settings})


def resolve_loss_settings(config: TrainConfig, loss: WeightedLoss) -> TrainConfig:
    """Fill in the loss's default settings, and `reference="none"` for a loss without a reference.

    Raises:
        UserError: a reference or batch size was given that the loss can't use.
    """
    if config.init_adapter and not loss.needs_reward_head:
        hint = "Start from another adapter, or train it further with --loss reward."
        refuse_reward_model(config.init_adapter, f"which the loss {config.loss!r} can't train", hint, "init_adapter")
    if not loss.needs_reference and config.reference not in ("none", TrainConfig().reference):
        hint = "Leave out --reference; `mlx-dpo losses` shows which losses use one."
        raise UserError(f"the loss {config.loss!r} has no reference", field="reference", hint=hint)
    if loss.needs_kl and config.batch_size == 1:
        hint = "The KL is estimated on the answers to other prompts of the batch: use --batch-size 8 or more."
        raise UserError(f"the loss {config.loss!r} needs the KL of a batch", field="batch_size", hint=hint)
    if config.reference_sync_steps and not (loss.needs_reference and config.reference in ("initial", "base")):
        raise UserError("only --reference initial or base can be updated", field="reference_sync_steps")
    if config.reference_mixup is not None and not config.reference_sync_steps:
        raise UserError("this has no effect without --reference-sync-steps", field="reference_mixup")
    settings = {name: loss.settings[name] for name in LOSS_SETTINGS if name in loss.settings}
    return config.replace(**settings, **({} if loss.needs_reference else {"reference": "none"}))


def resolve_for_examples(config: TrainConfig, loss: WeightedLoss, examples: ExampleSet) -> TrainConfig:
    """Set `reference="none"` if the loss is SFT on single completions, which needs none.

    Args:
        config: the run's settings.
        loss: its loss.
        examples: the examples to train on.

    Returns:
        The settings to train with.

    Raises:
        UserError: a setting for pairs was given, and the examples are single completions.
    """
    if not examples.is_unpaired:
        return config
    for name, is_set in (("ld_alpha", config.ld_alpha is not None), ("use_weighting", config.use_weighting)):
        if is_set:
            raise UserError("this applies to pairs, but the rows are single completions", field=name)
    return config.replace(reference="none") if loss.likelihood_only else config
