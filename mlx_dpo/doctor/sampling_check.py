"""Completions of the bundled model: alone and in a batch, and greedily against the model's own logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Prompt
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.doctor.check import CheckOutcome, failed, passed
from mlx_dpo.forward.attention import replaced_attention
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.plain_attention import plain_attention
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SamplingParams

NUM_PROMPTS = 3
COMPLETIONS_PER_PROMPT = 2
MAX_TOKENS = 16
LOGIT_TOLERANCE = 1e-2  # below the largest: what a cache and a batch may change by rounding, in any precision
ADVICE = (
    "Completions of `mlx-dpo sample`, `rounds`, `label` and on-policy training are wrong on this machine; training on "
    "given pairs is not affected. Install another version of mlx or mlx-lm, and report these versions."
)


def check_sampling() -> CheckOutcome:
    """Compare completions sampled alone and together, and greedy tokens with the largest plain logits."""
    tokenizer, model = load_tokenizer(str(MODEL)), load_model(str(MODEL)).model
    renderer = ChatRenderer(tokenizer)
    prompts = [renderer.prompt_ids(Prompt(row["prompt"])) for row in load_pairs("valid")[:NUM_PROMPTS]]
    params, n = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=1), COMPLETIONS_PER_PROMPT
    together = sample_completions(model, tokenizer, prompts, params, n=n)
    for i, prompt in enumerate(prompts):
        alone = sample_completions(model, tokenizer, [prompt], params, n=n, prompt_seeds=[i], batch_size=1)
        for k, (single, other) in enumerate(zip(alone[0], together[i], strict=True)):
            if single.token_ids != other.token_ids:
                text = f"the tokens {list(single.token_ids)} alone and {list(other.token_ids)} in a batch"
                return failed(f"with the same seed, completion {k + 1} of prompt {i + 1} has {text}", ADVICE)
    greedy = sample_completions(model, tokenizer, prompts, SamplingParams(max_tokens=MAX_TOKENS))
    for i, (prompt, (completion,)) in enumerate(zip(prompts, greedy, strict=True)):
        gap = _largest_gap(model, prompt, completion.token_ids)
        if not gap <= LOGIT_TOLERANCE:
            text = f"a greedy token of prompt {i + 1} has a logit {gap:.2g} below the largest of a plain pass"
            return failed(f"{text}, where rounding explains {LOGIT_TOLERANCE:g}", ADVICE)
    count = sum(len(completion.token_ids) for completion in chain(*together, *greedy))
    return passed(f"{count} tokens: the same alone and in a batch, and greedily those with the largest logits")


def _largest_gap(model: nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """How far the logit of a completion's token is below the largest, at most, in a plain pass over all tokens."""
    with replaced_attention(plain_attention):
        logits = model(mx.array([[*prompt, *completion[:-1]]]))[0, len(prompt) - 1 :].astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(list(completion))[:, None], axis=-1)[:, 0]
    return float((logits.max(axis=-1) - chosen).max().item())
