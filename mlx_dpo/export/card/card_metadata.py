"""The YAML metadata of a model card, which the Hub lists and filters by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlx_dpo.export.card.card_inputs import CardInputs

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

METRIC_LABELS = {
    "logps/accuracies": "log-probability accuracy",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of the chosen completion",
    "rewards/rejected": "reward of the rejected completion",
    "logps/chosen": "log-probability of the chosen completion",
    "logps/rejected": "log-probability of the rejected completion",
    "loss": "loss",
}
_INDEXED_METRICS = ("rewards/accuracies", "rewards/margins", "logps/accuracies", "loss")
_BASE_MODEL_RELATION = {"adapter": "adapter", "peft": "adapter", "model": "finetune"}


def card_metadata(inputs: CardInputs) -> ModelCardData:
    """The metadata of an adapter's or a model's card; see https://huggingface.co/docs/hub/model-cards."""
    from huggingface_hub import ModelCardData

    base_model, results = inputs.base.repo_id, _eval_results(inputs)
    return ModelCardData(
        library_name="peft" if inputs.kind == "peft" else "mlx",
        pipeline_tag=_task(inputs),
        tags=["mlx", "mlx-dpo", "preference-tuning", *_method_tags(inputs)],
        base_model=base_model,
        base_model_relation=_BASE_MODEL_RELATION[inputs.kind] if base_model else None,
        datasets=[inputs.hub_dataset.repo_id] if inputs.hub_dataset else None,
        model_name=inputs.name if results else None,
        eval_results=results or None,
        **inputs.base.inherited_metadata,
    )


def _task(inputs: CardInputs) -> str:
    """The Hub's name of what it does; reward models are listed among classifiers."""
    return "text-classification" if inputs.is_reward_model else "text-generation"


def _method_tags(inputs: CardInputs) -> Iterator[str]:
    """The names of the run's built-in losses, and its kind of adapter."""
    losses = str(inputs.config.get("loss") or "").split(",")
    names = (loss.partition("=")[0] for loss in losses if loss and ":" not in loss)
    yield from ("reward-model",) if inputs.is_reward_model else ("dpo" if name == "sigmoid" else name for name in names)
    if inputs.kind != "model":
        yield str(inputs.config.get("fine_tune_type") or "lora")


def _eval_results(inputs: CardInputs) -> list[EvalResult]:
    """The final validation metrics, for the Hub's model index."""
    from huggingface_hub import EvalResult

    dataset = inputs.hub_dataset
    split = dataset.config_and_split.rpartition("/")[2] if dataset and dataset.config_and_split else None
    return [
        EvalResult(
            task_type=_task(inputs),
            dataset_type=dataset.repo_id if dataset else "preference-pairs",
            dataset_name=inputs.data_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{METRIC_LABELS[metric]} (validation)",
            metric_value=round(inputs.metrics_after[metric], 4),
        )
        for metric in _INDEXED_METRICS
        if math.isfinite(inputs.metrics_after.get(metric, math.nan))
    ]
