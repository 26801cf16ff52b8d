"""The memory of sampling, against what mlx measures."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3_text, qwen3, qwen3_5

from mlx_dpo.sampling import sampling_memory
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.sampling_memory import fitting_batch_size, sampling_bytes
from tests.forward.families import COMMON, CONFIGS
from tests.sampling.test_batched_sampling import NoEnd

WIDE: dict[str, Any] = {**COMMON, "num_hidden_layers": 4, "num_key_value_heads": 4, "head_dim": 64}
LARGE_VOCABULARY = {**WIDE, "vocab_size": 60_000, "num_hidden_layers": 2}


def make(family: str, config: dict[str, Any]) -> Any:
    module = {"qwen3": qwen3, "gemma3_text": gemma3_text, "qwen3_5": qwen3_5}[family]
    return module.Model(module.ModelArgs.from_dict({**config, "model_type": family}))


RECURRENT = {**CONFIGS["qwen3_5"]["text_config"], "linear_num_value_heads": 8, "linear_num_key_heads": 8}
RECURRENT |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_hidden_layers": 8}
CASES = {
    "keys and values": ("qwen3", WIDE),
    "windows": ("gemma3_text", {**WIDE, "sliding_window": 64, "sliding_window_pattern": 2}),
    "recurrent states": ("qwen3_5", {"text_config": RECURRENT}),
    "a large vocabulary": ("qwen3", LARGE_VOCABULARY),
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_mlxs_peak(case: str) -> None:
    family, config = CASES[case]
    length = 8 if case == "recurrent states" else 200  # on the CPU mlx-lm runs those a token at a time, and keeps all
    model, prompt = make(family, config), np.random.default_rng(0).integers(2, 300, length).tolist()
    mx.eval(model.parameters())
    sample_completions(model, NoEnd(), [prompt[:4]], SamplingParams(2))  # tries what it can run side by side
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    params = SamplingParams(6, temperature=1.0)
    sample_completions(model, NoEnd(), [prompt] * 2, params, n=12, batch_size=12)
    measured = mx.get_peak_memory() - before
    estimate = sampling_bytes(model, length, 6, 12)
    assert 0.75 * measured <= estimate <= 1.35 * measured


def test_as_many_sequences_as_fit_are_sampled_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen3", WIDE)
    weights = sum(tensor.nbytes for _, tensor in tree_flatten(model.parameters()))

    def batch_size(memory: int) -> int:
        monkeypatch.setattr(sampling_memory, "usable_memory", lambda: memory)
        return fitting_batch_size(model, 1000, 500, 32)

    for count in (1, 3, 31):
        needed = weights + 2 * sampling_bytes(model, 1000, 500, count)
        assert batch_size(needed + 10) == count and batch_size(needed - 10) == max(1, count - 1)
    assert batch_size(2**40) == 32 and batch_size(0) == 1


def test_nothing_is_run() -> None:
    model = make("qwen3", WIDE)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    estimates = [sampling_bytes(model, 5000, tokens, 32) for tokens in (100, 256, 257, 2000)]
    assert estimates[0] == estimates[1] < estimates[2] < estimates[3]
    assert mx.get_peak_memory() - before < 100_000
