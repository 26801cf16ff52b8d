"""Answers to prompts: one completion of each, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.chat_rendering import ChatRenderer, PromptSource
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.path_agreement import count_logits
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SamplingParams


def generate_responses(
    model: nn.Module, renderer: ChatRenderer, prompts: Sequence[PromptSource], sampling: SamplingParams
) -> list[str]:
    """Generate one response per prompt; the same seed gives the same responses on the same machine.

    Args:
        model: the model.
        renderer: gives the prompts' token ids, the same as in training.
        prompts: examples, or prompts without completions.
        sampling: how responses are sampled.

    Raises:
        RowError: a prompt can't be rendered.
        UserError: the tokenizer's ids are not in the model's vocabulary.
    """
    check_vocabulary(model, renderer.tokenizer)
    prompt_ids = [renderer.prompt_ids(prompt) for prompt in prompts]
    return generate_from_token_ids(model, renderer.tokenizer, prompt_ids, sampling)


def generate_from_token_ids(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingParams
) -> list[str]:
    """Generate one completion per prompt.

    Args:
        model: the policy.
        tokenizer: its mlx-lm tokenizer.
        prompts: token ids of each prompt.
        sampling: temperature, seed and limits.

    Returns:
        [prompts] texts, without space around them.
    """
    completions = sample_completions(model, tokenizer, prompts, sampling)
    return [completion.text.strip() for (completion,) in completions]


def generate_before_and_after(
    model: str,
    adapter_path: str | Path,
    prompts: Sequence[PromptSource],
    sampling: SamplingParams,
    *,
    raw: bool = False,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[str], list[str]]:
    """Generate responses without and with an adapter, with the same seed.

    Args:
        model: folder or Hub id of the model.
        adapter_path: folder of the adapter.
        prompts: examples, or prompts without completions.
        sampling: how responses are sampled.
        raw: take texts as they are, though there is a chat template.
        template_kwargs: variables for the chat template; those of a prompt take precedence.

    Returns:
        The base model's responses and the tuned model's.

    Raises:
        UserError: the model or the adapter can't be loaded, mlx can't run it on this machine, or a prompt can't be
            rendered.
    """
    renderer = ChatRenderer(load_tokenizer(model), raw=raw, template_kwargs=template_kwargs)
    prompt_ids = [renderer.prompt_ids(prompt) for prompt in prompts]
    network = load_model(model).model
    check_vocabulary(network, renderer.tokenizer)
    _, base = load_adapter(network, adapter_path)
    count_logits(network)  # what mlx can't run here is a sentence, and not a traceback from mlx-lm
    with swap_adapter(network, base):
        untuned = generate_from_token_ids(network, renderer.tokenizer, prompt_ids, sampling)
    return untuned, generate_from_token_ids(network, renderer.tokenizer, prompt_ids, sampling)
