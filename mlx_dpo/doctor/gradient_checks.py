"""Log-probs and gradients of every path of the engine, against the plain one on small models.

The plain path is mlx's own differentiation of the whole model in float32: a sequence at a time, with all logits, with
quantized weights unpacked, and attention in plain operations, so that a wrong fused attention is the finding of its own
check and not of each of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.gated_delta import gated_delta_ops
from mlx_lm.utils import dequantize_model

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.doctor.check import CheckOutcome, failed, passed
from mlx_dpo.doctor.tiny_models import VOCABULARY, make_batch, make_tiny_model
from mlx_dpo.forward.attention import QUERY_BLOCK, replaced_attention
from mlx_dpo.forward.chunked_recurrence import SEGMENT
from mlx_dpo.forward.gated_delta_rule import gated_delta_rule
from mlx_dpo.forward.head import find_head_split
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.forward.plain_attention import plain_attention
from mlx_dpo.forward.rounding import largest_difference, tolerance

PROMPT_LENGTHS = (19, 4, 1)
LONG_PROMPT = (2 * QUERY_BLOCK + 20,)  # more than two blocks of queries
FEW_TOKENS = 7  # in a chunk of the head
ADVICE = (
    "Training is wrong on this machine: don't use what it gives. Install another version of mlx or mlx-lm, and report "
    "these versions with these numbers."
)
GATED_DELTA_LENGTH = 70  # tokens: more than a chunk
GATED_DELTA_ADVICE = (
    "Models with gated delta layers (Qwen3-Next, Qwen3.5, Kimi Linear) train wrongly on this machine; others are not "
    "affected. Install another version of mlx or mlx-lm, and report these versions with these numbers."
)
LOGPS = "the log-probs"

Results = dict[str, mx.array]  # log-probs of the sequences, and gradients by name


@dataclass(frozen=True)
class PathCase:
    """A path of the engine through a small model.

    Attributes:
        model_type: of the model.
        sharing: how completions share their prompt.
        chunk_tokens: tokens whose logits are in memory at a time.
        checkpointed_share: of the modules that can be checkpointed.
        prompt_lengths: tokens of the prompts.
        bits: of quantized weights; None for none.
        dtype: of all other weights.
        repeats_forward: whether the forward pass is repeated with the loss's gradient in its place.
    """

    model_type: str = "qwen3"
    sharing: PromptSharing = PromptSharing.ANY_PROMPTS
    chunk_tokens: int = 64
    checkpointed_share: float = 0.0
    prompt_lengths: tuple[int, ...] = PROMPT_LENGTHS
    bits: int | None = None
    dtype: mx.Dtype = mx.float32
    repeats_forward: bool = False


def check_paths(*cases: PathCase, advice: str = ADVICE) -> CheckOutcome:
    """Compare paths of the engine with the plain path.

    Args:
        cases: the paths.
        advice: what to do if one differs.
    """
    for case in cases:
        model = make_tiny_model(case.model_type, bits=case.bits, dtype=case.dtype)
        batch = make_batch(case.prompt_lengths)
        weights = np.linspace(-1, 1, len(batch.sequences)).astype(np.float32)
        actual = _engine_results(case, model, batch, weights)
        expected = _plain_results(_in_float32(model), batch, weights)
        difference = _difference(actual, expected, tolerance(case.dtype))
        if difference:
            checkpointed = f", {case.checkpointed_share:.0%} of modules checkpointed" if case.checkpointed_share else ""
            return failed(f"{difference} ({case.model_type}, {case.sharing.value}{checkpointed})", advice)
    return passed(f"log-probs and gradients agree with the plain path to {tolerance(cases[0].dtype):.0e}")


def check_gated_delta() -> CheckOutcome:
    """Compare the gated delta rule in chunks with mlx-lm's loop over tokens, and a model that has it."""
    for length in (GATED_DELTA_LENGTH, SEGMENT + GATED_DELTA_LENGTH):
        for per_channel in (False, True):
            inputs = _gated_delta_inputs(length, per_channel)
            actual, expected = (_gated_delta_results(rule, inputs) for rule in (gated_delta_rule, gated_delta_ops))
            if difference := largest_difference(actual, expected, tolerance()):
                gates = "a gate for each channel" if per_channel else "a gate for each head"
                return failed(f"{difference} ({length} tokens, {gates})", GATED_DELTA_ADVICE)
    return check_paths(PathCase("qwen3_next"), advice=GATED_DELTA_ADVICE)


def _gated_delta_inputs(length: int, per_channel: bool) -> list[mx.array]:
    """q, k, v, gates, step sizes and the first state; small, since the loop takes a while."""
    generator = np.random.default_rng(length)
    heads, size = 2, 16
    q, k, v = generator.standard_normal((3, 1, length, heads, size))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    gates = generator.uniform(0.9, 1, (1, length, heads, size) if per_channel else (1, length, heads))
    steps, state = generator.uniform(0, 1, (1, length, heads)), generator.standard_normal((1, heads, size, size))
    return [mx.array(x.astype(np.float32)) for x in (q / size, k, v, gates, steps, state)]


def _gated_delta_results(rule: Callable[..., Sequence[mx.array]], inputs: list[mx.array]) -> Results:
    upstream_grads = [mx.cos(inputs[2]), mx.cos(inputs[5])]  # of outputs and last state
    outputs, gradients = mx.vjp(rule, inputs, upstream_grads)
    names = ("q", "k", "v", "gates", "step sizes", "state")
    results = {f"the gradient of {name}": array for name, array in zip(names, gradients, strict=True)}
    return {"the output": outputs[0], "the last state": outputs[1], **results}


def _difference(actual: Results, expected: Results, allowed: float) -> str | None:
    """What differs: log-probs relative to the largest, gradients to the largest of all gradients."""
    names = [name for name in expected if name != LOGPS]
    largest = max(float(np.abs(np.array(expected[name])).max()) for name in names)
    return largest_difference(actual, {LOGPS: expected[LOGPS]}, allowed) or largest_difference(
        actual, {name: expected[name] for name in names}, allowed, largest
    )


def _engine_results(case: PathCase, model: nn.Module, batch: MicroBatch, weights: np.ndarray) -> Results:
    split = find_head_split(model)
    network = Network(model, split, case.sharing, VOCABULARY, case.chunk_tokens)
    num_checkpointed = round(case.checkpointed_share * network.num_checkpointable)
    trace = network.trace(batch, num_checkpointed)
    if case.repeats_forward:
        assert trace.terms.logp_grads is not None
        upstream_grad = trace.logps.token_grads(weights) * trace.terms.logp_grads
        gradients = network.lazy_backward(batch, num_checkpointed, upstream_grad)[2]
    else:
        gradients = trace.gradient(weights)
    return {LOGPS: mx.array(trace.logps.sums.astype(np.float32)), **_named(gradients)}


def _in_float32(model: nn.Module) -> nn.Module:
    """The model, changed in place: its weights unpacked and in float32, and the same ones trainable."""
    trainable = set(trainable_tensors(model))
    model.set_dtype(mx.float32)
    model = dequantize_model(model)
    model.freeze()  # unpacked weights are not
    model.unfreeze(keys=sorted({name.rpartition(".")[2] for name in trainable}))
    return model


def _plain_results(model: nn.Module, batch: MicroBatch, weights: np.ndarray) -> Results:
    def logp(prompt: tuple[int, ...], completion: tuple[int, ...]) -> mx.array:
        logits = model(mx.array([prompt + completion[:-1]]))[0, len(prompt) - 1 :].astype(mx.float32)
        logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return mx.take_along_axis(logps, mx.array(completion)[:, None], axis=-1).sum()

    def weighted() -> tuple[mx.array, mx.array]:
        sums = mx.stack([logp(prompt, completion) for prompt, completion in batch.sequences])
        return (sums * mx.array(weights)).sum(), sums

    with replaced_attention(plain_attention):
        (_, sums), gradients = nn.value_and_grad(model, weighted)()
    return {LOGPS: sums, **_named(gradients)}


def _named(gradients: Any) -> Results:
    return {f"the gradient of {name}": array for name, array in tree_flatten(gradients)}
