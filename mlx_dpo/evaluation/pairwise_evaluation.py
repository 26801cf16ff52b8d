"""Has a base and a tuned model answer the same prompts, and a judge compare the answers."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.example_sources import ExampleSource
from mlx_dpo.data.examples import Example
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.head_to_head import HeadToHeadResult, judge_head_to_head
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.judges.judge import Judge
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.generation import generate_before_and_after, generate_responses


def pairwise_evaluation(
    config: TrainConfig,
    adapter_path: str | Path | None,
    source: ExampleSource,
    num_prompts: int,
    judge: Judge,
    sampling: SamplingParams,
) -> HeadToHeadResult:
    """Compare the answers of the model with and without an adapter.

    Args:
        config: its model is used, and its reference if there is no adapter: the folder of the base model.
        adapter_path: adapter folder to load onto the model.
        source: rows with the prompts.
        num_prompts: how many of the source's distinct prompts to answer, from the first on.
        judge: compares the answers.
        sampling: how answers are drawn; both models use the same seed.

    Raises:
        UserError: a model can't be loaded, or the judge fails.
    """
    examples = distinct_prompts(source, num_prompts)
    raw, template_kwargs = config.raw, config.chat_template_kwargs or {}
    if adapter_path is not None:
        base, tuned = generate_before_and_after(
            config.model, adapter_path, examples, sampling, raw=raw, template_kwargs=template_kwargs
        )
    else:
        renderer = ChatRenderer(load_tokenizer(config.model), raw=raw, template_kwargs=template_kwargs)
        base = generate_responses(load_model(config.reference).model, renderer, examples, sampling)
        tuned = generate_responses(load_model(config.model).model, renderer, examples, sampling)
    mx.clear_cache()  # the judge may be a model too
    return judge_head_to_head([example.prompt for example in examples], base, tuned, judge)


def require_two_models(config: TrainConfig, adapter_path: str | Path | None) -> None:
    """Check that there is a base and a tuned model to compare.

    Raises:
        UserError: there is neither an adapter nor another model as the reference.
    """
    if adapter_path is None and config.reference in POLICY_REFERENCES:
        hint = "Give an --adapter-path, or the base model's folder as --reference."
        raise UserError("a base and a tuned model are needed", field="generate", hint=hint)


def distinct_prompts(source: ExampleSource, limit: int) -> list[Example]:
    """The first `limit` examples of a source with distinct prompts, in its order."""
    examples: dict[str, Example] = {}
    for i in range(len(source)):
        if len(examples) == limit:
            break
        example = source[i]
        key = json.dumps([example.prompt, example.tools, example.template_kwargs], sort_keys=True)
        examples.setdefault(key, example)
    return list(examples.values())
