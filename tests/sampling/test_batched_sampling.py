"""Batched sampling: greedy tokens are mlx-lm's, samples don't depend on the batch, sequences end where they should."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm import batch_generate
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache
from mlx_lm.tuner.utils import linear_to_lora_layers
from transformers import AutoTokenizer

from mlx_dpo.sampling import batched_sampling, decode_batch, token_sampler
from mlx_dpo.sampling.batch_support import batch_support
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SampledCompletion, SamplingParams
from mlx_dpo.sampling.prompt_caches import BatchSupport
from mlx_dpo.sampling.stop_texts import text_after
from mlx_dpo.sampling.token_sampler import completion_uniforms
from mlx_dpo.utils.stop_flag import StopRequested, stop_on
from tests.export.tiny import SPM
from tests.forward.families import CONFIGS, tiny

LENGTHS = (5, 1, 12, 30, 4, 30)  # of the prompts, in tokens; windows are of 8


class Numbers:
    """A tokenizer whose tokens are numbers."""

    def __init__(self, eos: Iterable[int]) -> None:
        self.eos_token_ids = tuple(eos)

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{i} " for i in ids)


class NoEnd(Numbers):
    """A tokenizer without an end-of-sequence token."""

    def __init__(self) -> None:
        super().__init__(())


def random_prompts(lengths: tuple[int, ...] = LENGTHS, vocabulary: int = 300) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, vocabulary, length).tolist() for length in lengths]


def ids(completions: list[list[SampledCompletion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in of_prompt] for of_prompt in completions]


def flat(completions: list[list[SampledCompletion]]) -> list[SampledCompletion]:
    return [completion for of_prompt in completions for completion in of_prompt]


def _slow(families: Iterable[str]) -> list[Any]:
    others = [family for family in families if family not in DEFAULT_FAMILIES and family != "bitnet"]  # needs Metal
    return [pytest.param(family, marks=pytest.mark.slow) for family in others]


def alone(model: nn.Module, prompt: list[int], count: int) -> tuple[int, ...]:
    """mlx-lm's greedy tokens of one sequence in plain caches."""
    steps = generate_step(mx.array(prompt), model, max_tokens=count)
    return tuple(int(token) for token, _ in steps)


DEFAULT_FAMILIES = {  # one of each kind of cache and of support; the others are slow tests
    "qwen3": BatchSupport.PADDED_PROMPTS,  # keys and values
    "gemma3_text": BatchSupport.PADDED_PROMPTS,  # with windows
    "qwen3_5": BatchSupport.PADDED_PROMPTS,  # with recurrent states
    "falcon_h1": BatchSupport.PADDED_PROMPTS,  # lists of caches
    "deepseek_v32": BatchSupport.PADDED_PROMPTS,
    "mamba": BatchSupport.MIXED_LENGTHS,
    "gemma2": BatchSupport.PROMPT,
    "llama4": BatchSupport.PROMPT,  # whose caches can't be merged
}


@pytest.mark.parametrize("family", [*DEFAULT_FAMILIES, *_slow(CONFIGS)])
def test_greedy_tokens_are_those_of_a_sequence_alone(family: str) -> None:
    model = tiny(family)
    model.eval()
    prompts = random_prompts()
    expected = [[alone(model, prompt, 14)] * 3 for prompt in prompts]
    assert ids(sample_completions(model, NoEnd(), prompts, SamplingParams(14), n=3, batch_size=7)) == expected
    assert batch_support(model) is DEFAULT_FAMILIES.get(family, batch_support(model))


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_greedy_tokens_are_those_of_mlx_lms_batches(family: str) -> None:
    model = tiny(family)
    model.eval()
    prompts = random_prompts()
    theirs = batch_generate(model, NoEnd(), prompts, max_tokens=20, return_token_ids=True).token_ids
    ours = sample_completions(model, NoEnd(), prompts, SamplingParams(20), batch_size=4)
    assert [list(completion.token_ids) for (completion,) in ours] == theirs


@pytest.mark.parametrize("family", ["gemma3_text", "mamba"])
def test_samples_do_not_depend_on_the_batch(family: str) -> None:
    model, prompts = tiny(family), random_prompts()
    params = SamplingParams(12, temperature=1.0, top_p=0.95, seed=3)
    expected = sample_completions(model, NoEnd(), prompts, params, n=4, batch_size=1)
    assert len({completion.token_ids for of_prompt in expected for completion in of_prompt}) == 4 * len(prompts)
    for batch_size in (2, 5, 32):
        assert ids(sample_completions(model, NoEnd(), prompts, params, n=4, batch_size=batch_size)) == ids(expected)
    chosen = [4, 0]
    some = sample_completions(model, NoEnd(), [prompts[i] for i in chosen], params, n=2, prompt_seeds=chosen)
    assert ids(some) == [ids(expected)[i][:2] for i in chosen]
    other = sample_completions(model, NoEnd(), prompts, replace(params, seed=4), n=4)
    assert all(a != b for a, b in zip(flat(other), flat(expected), strict=True))


def test_samples_do_not_depend_on_what_a_model_can_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, params = tiny("qwen3"), random_prompts(), SamplingParams(8, temperature=1.0, min_p=0.01)
    expected = ids(sample_completions(model, NoEnd(), prompts, params, n=3, batch_size=5))
    for support in BatchSupport:
        monkeypatch.setattr(batched_sampling, "batch_support", lambda model, support=support: support)
        assert ids(sample_completions(model, NoEnd(), prompts, params, n=3, batch_size=5)) == expected


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logps_are_the_models_at_temperature_1(temperature: float) -> None:
    model, prompts = tiny("qwen3"), random_prompts()
    params = SamplingParams(9, temperature=temperature, top_p=0.9)
    for prompt, completions in zip(prompts, sample_completions(model, NoEnd(), prompts, params, n=2), strict=True):
        for completion in completions:
            logits = np.array(model(mx.array([[*prompt, *completion.token_ids]]))[0, len(prompt) - 1 : -1], np.float64)
            logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            expected = logps[np.arange(len(logits)), completion.token_ids]
            assert completion.logps == pytest.approx(expected, abs=1e-4)


def test_a_token_is_the_inverse_of_the_random_number_of_its_seeds_completion_and_position() -> None:
    model, prompts = tiny("qwen3"), random_prompts()[:3]
    params, seeds = SamplingParams(7, temperature=1.0, seed=3), [8, 0, 5]
    sampled = sample_completions(model, NoEnd(), prompts, params, n=2, prompt_seeds=seeds, batch_size=4)
    for prompt, seed, completions in zip(prompts, seeds, sampled, strict=True):
        for index, completion in enumerate(completions):
            ids, uniforms = completion.token_ids, completion_uniforms(3, seed, index, 7)
            logits = np.array(model(mx.array([[*prompt, *ids]]))[0, len(prompt) - 1 : -1], np.float64)
            ends = np.cumsum(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True), axis=-1)
            for position, token in enumerate(ids):
                assert token == np.searchsorted(ends[position], uniforms[position], side="right")


def test_the_lookahead_of_a_gpu_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, tokenizer = tiny("qwen3"), random_prompts(), Numbers(eos=range(40, 80))
    params = SamplingParams(12, temperature=1.0)
    expected = sample_completions(model, tokenizer, prompts, params, n=3, batch_size=4)
    assert {c.finish_reason for of_prompt in expected for c in of_prompt} == {"stop", "length"}
    for module in (decode_batch, token_sampler):
        monkeypatch.setattr(module, "runs_on_cpu", lambda: False)
    ahead = sample_completions(model, tokenizer, prompts, params, n=3, batch_size=4)
    assert ids(ahead) == ids(expected)


# Ends


@pytest.mark.parametrize("batch_size", [1, 6])
def test_any_end_of_sequence_token_ends_a_completion(batch_size: int) -> None:
    model, prompts = tiny("qwen3"), random_prompts()
    params = SamplingParams(20, temperature=1.0)
    endless = sample_completions(model, NoEnd(), prompts, params, n=2)
    eos = {endless[0][0].token_ids[3], endless[2][1].token_ids[0], endless[3][0].token_ids[19]}
    reported: list[tuple[float, float]] = []
    completions = sample_completions(
        model,
        Numbers(eos),
        prompts,
        params,
        n=2,
        batch_size=batch_size,
        on_progress=lambda done, total: reported.append((done, total)),
    )
    for ended, whole in zip(flat(completions), flat(endless), strict=True):
        end = next((i + 1 for i, token in enumerate(whole.token_ids) if token in eos), None)
        assert ended.token_ids == whole.token_ids[:end]
        assert ended.finish_reason == ("length" if end is None else "stop")
        assert ended.text == Numbers(()).decode([token for token in ended.token_ids if token not in eos])
        assert len(ended.logps) == len(ended.token_ids)
    assert reported[-1] == (12, 12)


class Pieces:
    """A tokenizer of few pieces; the first piece of a text loses its space, as with SentencePiece."""

    eos_token_ids = (0,)
    pieces = ("", " a", "b", "#", "## ", "é", " STOP", " S", "TO", "P")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids).removeprefix(" ")


class Script(nn.Module):
    """A model that continues every prompt, of a token, with its script."""

    def __init__(self, script: list[int]) -> None:
        super().__init__()
        self.script, self.layers = mx.array([*script, 1]), []

    def make_cache(self) -> list[KVCache]:
        return [KVCache()]

    def __call__(self, inputs: mx.array, cache: Any) -> mx.array:
        keys = mx.zeros((*inputs.shape, 1, 4)).swapaxes(1, 2)
        position = mx.broadcast_to(mx.array(cache[0].offset), inputs.shape[:1])
        cache[0].update_and_fetch(keys, keys)
        following = self.script[mx.minimum(position, len(self.script) - 1)]
        logits = 9.0 * (mx.arange(10) == following[:, None])
        return mx.broadcast_to(logits[:, None], (*inputs.shape, 10))


@pytest.mark.parametrize(
    ("script", "stop", "text", "tokens"),
    [
        ([1, 2, 3, 3, 1, 1], ("##",), " ab", 4),
        ([1, 2, 4, 1], ("##",), " ab", 3),  # the stop text is in the middle of a token
        ([1, 2, 7, 8, 9, 1], ("STOP",), " ab ", 5),
        ([1, 2, 7, 8, 9, 1], ("TOP", "b S"), " a", 3),  # the one that is completed first
        ([6, 1], (" STOP",), "", 1),  # the first space is part of the text
        ([6, 6, 6, 1], ("STOP STOP STOP",), " ", 3),
        ([5, 1], ("STOP",), "é a a a a a a a a", 9),
        ([1] * 20 + [7, 8, 9, 1], ("a STOP",), " a" * 19 + " ", 23),
        ([5, 5, 2, 1], ("éb",), "é", 3),
        ([1, 3, 0], ("##",), " a#", 3),  # a token that ends the sequence comes first
        ([1, 3, 1], ("##",), " a# a a a a a a a", 9),
    ],
)
def test_stop_texts_across_tokens(script: list[int], stop: tuple[str, ...], text: str, tokens: int) -> None:
    length = 9 if tokens == 9 else 30
    params = SamplingParams(length, stop=stop)
    ((completion, again),) = sample_completions(Script(script), Pieces(), [[3]], params, n=2)
    assert completion == again
    assert (completion.text, len(completion.token_ids)) == (text, tokens)
    assert completion.finish_reason == ("length" if tokens == 9 else "stop")


@pytest.mark.parametrize("prompt", ["Say the", "Say", "<s>"])
def test_text_continues_the_prompts_of_a_sentencepiece_tokenizer(prompt: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SPM)
    ids = tokenizer.encode(prompt + " word again", add_special_tokens=False)
    start = len(tokenizer.encode(prompt, add_special_tokens=False))
    assert tokenizer.decode(ids[start:]) == "word again", "a text's first space is dropped"
    assert text_after(tokenizer, ids[start - 1], ids[start:]) == " word again"


# The model


def test_the_model_is_used_in_place_without_dropout_and_left_as_it_was() -> None:
    model, prompts = tiny("qwen3"), random_prompts()
    expected = ids(sample_completions(model, NoEnd(), prompts, SamplingParams(6)))
    linear_to_lora_layers(model, 2, {"rank": 2, "scale": 1.0, "dropout": 0.9})
    for training in (True, False):
        model.train(training)
        assert ids(sample_completions(model, NoEnd(), prompts, SamplingParams(6))) == expected
        assert model.training is training
        assert all(module.training is training for module in model.modules())


def test_a_stop_request_ends_sampling_between_tokens() -> None:
    model, event, steps = tiny("qwen3"), threading.Event(), 0

    class Stopping(NoEnd):
        def decode(self, ids: list[int]) -> str:
            nonlocal steps
            steps += 1
            if steps == 10:
                event.set()
            return super().decode(ids)

    model.train()
    with stop_on(event), pytest.raises(StopRequested):
        sample_completions(model, Stopping(), [[3, 4]], SamplingParams(50, stop=("x",)))
    assert steps == 10 and model.training


def test_no_prompts() -> None:
    assert sample_completions(tiny("qwen3"), NoEnd(), [], SamplingParams()) == []
