"""Preference fine-tuning of language models on the Mac they run on.

    from mlx_dpo import TrainConfig, evaluate, train

    result = train(TrainConfig(model="./Qwen3-4B-4bit", data="pairs.jsonl"))
    metrics = evaluate(TrainConfig(model="./Qwen3-4B-4bit", data="valid.jsonl"), adapter_path=result.run)

Importing this package imports nothing else, so that a command handles Ctrl-C soon after it has started. Importing
`train`, `evaluate` or `score` from it imports mlx and mlx-lm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_dpo.config import TrainConfig
    from mlx_dpo.errors import Interrupted, RowError, UserError
    from mlx_dpo.evaluation.evaluator import evaluate
    from mlx_dpo.evaluation.implicit_rewards import score
    from mlx_dpo.forward.reward_model import RewardModel, best_of_n
    from mlx_dpo.labeling.label_run import label
    from mlx_dpo.labeling.label_settings import LabelSettings
    from mlx_dpo.rounds.rounds_config import RoundsConfig
    from mlx_dpo.rounds.rounds_run import train_rounds
    from mlx_dpo.sampling.batched_sampling import sample_completions
    from mlx_dpo.sampling.completions import SampledCompletion, SamplingParams
    from mlx_dpo.sampling.sample_prompts import sample
    from mlx_dpo.training.events import TrainResult
    from mlx_dpo.training.listener import Listener
    from mlx_dpo.training.run import train

__all__ = [
    "Interrupted",
    "LabelSettings",
    "Listener",
    "RewardModel",
    "RoundsConfig",
    "RowError",
    "SampledCompletion",
    "SamplingParams",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "best_of_n",
    "evaluate",
    "label",
    "sample",
    "sample_completions",
    "score",
    "train",
    "train_rounds",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    modules = {
        "TrainConfig": "config",
        "Interrupted": "errors",
        "RowError": "errors",
        "UserError": "errors",
        "train": "training.run",
        "train_rounds": "rounds.rounds_run",
        "RoundsConfig": "rounds.rounds_config",
        "RewardModel": "forward.reward_model",
        "best_of_n": "forward.reward_model",
        "label": "labeling.label_run",
        "LabelSettings": "labeling.label_settings",
        "sample": "sampling.sample_prompts",
        "sample_completions": "sampling.batched_sampling",
        "SampledCompletion": "sampling.completions",
        "SamplingParams": "sampling.completions",
        "score": "evaluation.implicit_rewards",
        "evaluate": "evaluation.evaluator",
        "Listener": "training.listener",
        "TrainResult": "training.events",
    }
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mlx_dpo.{modules[name]}"), name)
