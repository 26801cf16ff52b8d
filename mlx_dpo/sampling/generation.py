"""Answers to prompts, by mlx-lm's batched generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.path_agreement import count_logits


@dataclass(frozen=True)
class SamplingParams:
    """How responses are sampled.

    Attributes:
        max_tokens: longest response, in tokens.
        temperature: 0 for greedy decoding.
        top_p: probability mass to sample from; 1 for all tokens.
        seed: of the sampling.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def generate_responses(
    model: nn.Module, tokenizer: Any, prompts: Sequence[TextOrMessages], sampling: SamplingParams
) -> list[str]:
    """Generate one response per prompt; the same seed gives the same responses on the same machine."""
    return generate_from_token_ids(model, tokenizer, [encode_prompt(tokenizer, prompt) for prompt in prompts], sampling)


def generate_from_token_ids(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingParams
) -> list[str]:
    """Generate one response per prompt, where prompts are given as token ids."""
    from mlx_lm import batch_generate
    from mlx_lm.sample_utils import make_sampler

    mx.random.seed(sampling.seed)
    was_training = model.training
    model.eval()
    try:
        response = batch_generate(
            model,
            tokenizer,
            [list(ids) for ids in prompts],
            max_tokens=sampling.max_tokens,
            sampler=make_sampler(temp=sampling.temperature, top_p=sampling.top_p),
        )
    finally:
        model.train(was_training)
    return [text.strip() for text in response.texts]


def encode_prompt(tokenizer: Any, prompt: TextOrMessages) -> list[int]:
    """Token ids of a prompt as it is rendered for generation: a user turn, or messages, and the generation prompt."""
    if tokenizer.chat_template is None:
        text = prompt if isinstance(prompt, str) else "\n\n".join(str(m.get("content") or "") for m in prompt)
        return tokenizer.encode(text)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


def generate_before_and_after(
    model: str, adapter_path: str | Path, prompts: Sequence[TextOrMessages], sampling: SamplingParams
) -> tuple[list[str], list[str]]:
    """Generate responses without and with an adapter, with the same seed.

    Returns:
        The base model's responses and the tuned model's.

    Raises:
        UserError: the model or the adapter can't be loaded, or mlx can't run it on this machine.
    """
    network, tokenizer = load_model(model).model, load_tokenizer(model)
    _, base = load_adapter(network, adapter_path)
    count_logits(network)  # what mlx can't run here is a sentence, and not a traceback from mlx-lm
    with swap_adapter(network, base):
        untuned = generate_responses(network, tokenizer, prompts, sampling)
    return untuned, generate_responses(network, tokenizer, prompts, sampling)
