"""The loss of a config, and the config's settings as they hold for it."""

from __future__ import annotations

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.objectives import LOSS_SETTINGS, WeightedLoss


def loss_from_config(config: TrainConfig) -> WeightedLoss:
    """The objective of a config, with its knobs. Raises `UserError`."""
    likelihood = f",sft={config.rpo_alpha}" if config.rpo_alpha else ""
    return WeightedLoss.parse(
        config.loss + likelihood,
        {name: getattr(config, name) for name in LOSS_SETTINGS},
        use_weighting=config.use_weighting,
        ld_alpha=1.0 if config.ld_alpha is None else config.ld_alpha,
    )


def resolve_loss_settings(config: TrainConfig, loss: WeightedLoss) -> TrainConfig:
    """The config with the loss's knobs as they were resolved, and no reference where the loss has none.

    Raises `UserError` where such a loss is given a reference.
    """
    if not loss.needs_reference and config.reference not in ("none", TrainConfig().reference):
        hint = "Leave --reference out; `mlx-dpo losses` tells which losses have one."
        raise UserError(f"the loss {config.loss!r} has no reference", field="reference", hint=hint)
    if loss.needs_kl and config.batch_size == 1:
        hint = "It is estimated on the answers to other prompts of the batch: --batch-size 8 or more is good."
        raise UserError(f"the loss {config.loss!r} asks for a batch's KL", field="batch_size", hint=hint)
    if config.reference_sync_steps and config.reference not in ("initial", "base"):
        raise UserError("only --reference initial or base can move", field="reference_sync_steps")
    if config.reference_mixup is not None and not config.reference_sync_steps:
        raise UserError("nothing is mixed without --reference-sync-steps", field="reference_mixup")
    knobs = {name: loss.settings[name] for name in LOSS_SETTINGS if name in loss.settings}
    return config.replace(**knobs, **({} if loss.needs_reference else {"reference": "none"}))


def resolve_for_examples(config: TrainConfig, loss: WeightedLoss, examples: ExampleSet) -> TrainConfig:
    """The config as it holds for such examples. Raises `UserError` where a knob does not go with them."""
    if not examples.is_unpaired:
        return config
    for name, given in (("ld_alpha", config.ld_alpha is not None), ("use_weighting", config.use_weighting)):
        if given:
            raise UserError("it is of pairs, and the rows are single completions", field=name)
    return config.replace(reference="none") if loss.likelihood_only else config
