"""Multiply-adds of what goes through a model, from shapes alone.

A multiply-add is one of a product with a weight matrix, of a LoRA factor, of attention's scores and sums, or of the
vocabulary's head. They are counted from the shapes that go through the model, padding included, and equal those of
mlx's own graph (tests/benchmarks/test_pipeline_costs.py). What frozen weights save is counted as saved: their own
gradient is never computed, so that a product costs twice its forward pass in training, and not three times. Norms,
softmaxes, value and reward heads (one product with a vector) and the optimizer are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.nn as nn

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.activation_memory import BatchCost
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.forward.reward_network import RewardNetwork

ATTENTION_PRODUCTS = 2  # scores, and the weighted sum of values
KEYS_AND_VALUES, LAYER_INPUTS = ("k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")


@dataclass
class Work:
    """What has gone through the model for one purpose.

    Attributes:
        prompt_tokens: of shared or cached prompts, of whose last layer only keys and values are computed.
        tokens: all others.
        head_tokens: tokens whose logits are computed.
        prompt_scores: query-key products of one attention head within the prompts.
        scores: the others.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    head_tokens: int = 0
    prompt_scores: int = 0
    scores: int = 0

    @classmethod
    def from_batch(cls, batch: MicroBatch, sharing: PromptSharing, head_tokens: int) -> Work:
        """The work of a micro-batch's forward pass."""
        cost = BatchCost.from_batch(batch, sharing)
        if sharing is PromptSharing.NONE:
            return cls(0, cost.tokens, head_tokens, 0, cost.attention_scores)
        shared = batch.shared_prompts
        prompt = shared.prompts.shape[1]
        scores = sum(group.inputs.size * (prompt + group.inputs.shape[1]) for group in shared.completion_groups)
        tokens = shared.prompts.size
        return cls(tokens, cost.tokens - tokens, head_tokens, cost.attention_scores - scores, scores)

    @classmethod
    def of_sampling(cls, prompt_tokens: int, completion_tokens: list[int]) -> Work:
        """The work of sampling completions of a prompt; the last prompt token is the first input of each."""
        prefix, total = prompt_tokens - 1, sum(completion_tokens)
        scores = sum(count * prefix + count * (count + 1) // 2 for count in completion_tokens)
        return cls(prefix, total, total, prefix * prefix, scores)

    def __iadd__(self, other: Work) -> Work:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass(frozen=True)
class ModelSize:
    """Multiply-adds of a model with an adapter, for one token unless noted.

    Attributes:
        frozen: products with frozen weights, without the head.
        lora: products with LoRA's factors.
        frozen_last, lora_last: of these, what prompts need not compute in the last layer.
        frozen_first, lora_first: of these, what reads the first layer's inputs, for which nothing wants a gradient.
        head: products with the vocabulary.
        attention: for one query-key pair in one layer, all heads together.
        layers: number of layers.
    """

    frozen: int
    lora: int
    frozen_last: int
    lora_last: int
    frozen_first: int
    lora_first: int
    head: int
    attention: int
    layers: int

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelSize:
        """Measure a llama-like model of mlx-lm; its linear layers may have LoRA or none."""
        layers = model.layers
        inputs = [_linear_layers(layer) for layer in layers]
        frozen = [{name: a * b for name, (a, b, _) in sizes.items()} for sizes in inputs]
        lora = [{name: rank * (a + b) for name, (a, b, rank) in sizes.items()} for sizes in inputs]

        def total(sizes: dict[str, int], names: tuple[str, ...] = ("",), inverse: bool = False) -> int:
            return sum(count for name, count in sizes.items() if name.endswith(names) is not inverse)

        args = model.args
        head_dim = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
        return cls(
            frozen=sum(map(total, frozen)),
            lora=sum(map(total, lora)),
            frozen_last=total(frozen[-1], KEYS_AND_VALUES, inverse=True),
            lora_last=total(lora[-1], KEYS_AND_VALUES, inverse=True),
            frozen_first=total(frozen[0], LAYER_INPUTS),
            lora_first=total({name: rank * width for name, (width, _, rank) in inputs[0].items()}, LAYER_INPUTS),
            head=args.vocab_size * args.hidden_size,
            attention=ATTENTION_PRODUCTS * args.num_attention_heads * head_dim,
            layers=len(layers),
        )

    def products(self, work: Work, backward: bool) -> int:
        """Multiply-adds of some work, with its backward pass or without."""
        tokens = work.prompt_tokens + work.tokens
        frozen = tokens * self.frozen - work.prompt_tokens * self.frozen_last
        lora = tokens * self.lora - work.prompt_tokens * self.lora_last
        scores = self.layers * work.scores + (self.layers - 1) * work.prompt_scores
        attention, head = scores * self.attention, work.head_tokens * self.head
        if not backward:
            return frozen + lora + attention + head
        return 2 * frozen + 3 * lora + 3 * attention + 2 * head - tokens * (self.frozen_first + self.lora_first)


def _linear_layers(layer: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Inputs, outputs and LoRA's rank (0 for none) of each linear layer of a block."""
    sizes: dict[str, tuple[int, int, int]] = {}
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear | nn.QuantizedLinear):
            outputs, inputs = module.weight.shape
            if isinstance(module, nn.QuantizedLinear):
                inputs = inputs * 32 // module.bits
            owner = name.removesuffix(".linear")
            wrapper = dict(layer.named_modules()).get(owner)
            rank = wrapper.lora_a.shape[1] if owner != name and wrapper is not None and "lora_a" in wrapper else 0
            sizes[owner] = (inputs, outputs, rank)
    return sizes


def batch_work(network: Network, batch: MicroBatch) -> Work:
    """The work of a network's forward pass."""
    if isinstance(network, RewardNetwork):
        return Work.from_batch(batch.last_tokens, network.sharing, 0)
    return Work.from_batch(batch, network.sharing, int(batch.trained_lengths.sum()))


def sampling_work(prompts: Any, completions: Any) -> Work:
    """The work of sampling completions of each prompt, without the padding beside shorter prompts."""
    work = Work()
    for prompt, of_prompt in zip(prompts, completions, strict=True):
        work += Work.of_sampling(len(prompt), [len(item.token_ids) for item in of_prompt])
    return work
