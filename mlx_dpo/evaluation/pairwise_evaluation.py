"""A base and a tuned model answer the same prompts, and a judge says whose answers are better."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.encoded_examples import ExampleSource
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.head_to_head import HeadToHeadResult, judge_head_to_head
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.judges.judge import Judge
from mlx_dpo.sampling.generation import SamplingParams, answer, generate_before_and_after


def pairwise_evaluation(
    config: TrainConfig,
    adapter_path: str | Path | None,
    source: ExampleSource,
    num_prompts: int,
    judge: Judge,
    sampling: SamplingParams,
) -> HeadToHeadResult:
    """Judge answers to a source's first `count` distinct prompts, of the model with an adapter against without.

    Without an adapter, `config.reference` is the folder of the base model. Raises `UserError`.
    """
    prompts = distinct_prompts(source, num_prompts)
    base, tuned = _answers(config, adapter_path, prompts, sampling)
    mx.clear_cache()  # a judge may be a model too
    return judge_head_to_head(prompts, base, tuned, judge)


def require_two_models(config: TrainConfig, adapter_path: str | Path | None) -> None:
    """Raise `UserError` where there is nothing to compare a model with."""
    if adapter_path is None and config.reference in POLICY_REFERENCES:
        hint = "Give an --adapter-path, or the base model's folder as --reference."
        raise UserError("there are no two models to compare", field="generate", hint=hint)


def distinct_prompts(source: ExampleSource, limit: int) -> list[TextOrMessages]:
    """The first distinct prompts of a source, in order."""
    found: dict[str, TextOrMessages] = {}
    for i in range(len(source)):
        if len(found) == limit:
            break
        prompt = source[i].prompt
        found.setdefault(json.dumps(prompt), prompt)
    return list(found.values())


def _answers(
    config: TrainConfig, adapter_path: str | Path | None, prompts: list[TextOrMessages], sampling: SamplingParams
) -> tuple[list[str], list[str]]:
    """Of the base and of the tuned model, drawn with the same seed."""
    require_two_models(config, adapter_path)
    if adapter_path is not None:
        return generate_before_and_after(config.model, adapter_path, prompts, sampling)
    tokenizer = load_tokenizer(config.model)
    base = answer(load_model(config.reference).model, tokenizer, prompts, sampling)
    return base, answer(load_model(config.model).model, tokenizer, prompts, sampling)
