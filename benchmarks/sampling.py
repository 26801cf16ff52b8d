"""Sampling by this project and by mlx_lm.batch_generate, in turns on one model: tokens a second, and the ratio.

    python benchmarks/sampling.py MODEL [MODEL ...] [--tokens 64] [--repeats 5] [--temperature 1] [--only shared]
                                  [--out FILE.json]

A MODEL is a folder, such as the `model` in what case.py and real_case.py leave. Prompts are random tokens, and no token
ends a completion, so that both sample the same number of tokens. The cases:

    shared   8 completions of a prompt of 512 tokens, 8 sequences side by side
    alone    1 completion of each of 2 prompts of 48 to 64 tokens, one after the other
    batch8   1 completion of each of 16 prompts of 24 to 64 tokens, 8 side by side
    batch32  1 completion of each of 32 prompts of 24 to 64 tokens, 32 side by side

The two take turns, and a ratio is the median over the turns, since other work on the machine slows both. `cpu` is the
ratio of the processor time, which such work changes less.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from processes import machine, print_status, versions, with_blas, write_json

VOCABULARY = 1000  # ids of the prompts, from 5 on


@dataclass(frozen=True)
class SamplingCase:
    """Prompts, and how many sequences are sampled side by side."""

    completions: int
    prompts: int
    lengths: tuple[int, int]
    batch_size: int


CASES = {
    "shared": SamplingCase(8, 1, (512, 512), 8),
    "alone": SamplingCase(1, 2, (48, 64), 1),
    "batch8": SamplingCase(1, 16, (24, 64), 8),
    "batch32": SamplingCase(1, 32, (24, 64), 32),
}


class EndlessTokenizer:
    """A tokenizer without an end-of-sequence token."""

    eos_token_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Any) -> None:
        self.decode = tokenizer.decode


class Contest:
    """Both ways of sampling, for one model."""

    def __init__(self, folder: str, num_tokens: int, temperature: float) -> None:
        from mlx_dpo.forward.model_loading import load_model, load_tokenizer

        self.model, self.tokenizer = load_model(folder).model, EndlessTokenizer(load_tokenizer(folder))
        self.num_tokens, self.temperature = num_tokens, temperature

    def ours(self, case: SamplingCase, prompts: list[list[int]]) -> int:
        """Sample, and return the number of tokens."""
        from mlx_dpo import SamplingParams, sample_completions

        params = SamplingParams(self.num_tokens, temperature=self.temperature)
        completions = sample_completions(
            self.model, self.tokenizer, prompts, params, n=case.completions, batch_size=case.batch_size
        )
        return sum(len(completion.token_ids) for of_prompt in completions for completion in of_prompt)

    def theirs(self, case: SamplingCase, prompts: list[list[int]]) -> int:
        """Sample, and return the number of tokens."""
        from mlx_lm import batch_generate
        from mlx_lm.sample_utils import make_sampler

        response = batch_generate(
            self.model,
            self.tokenizer,
            [prompt for prompt in prompts for _ in range(case.completions)],
            max_tokens=self.num_tokens,
            sampler=make_sampler(temp=self.temperature),
            return_token_ids=True,
            completion_batch_size=case.batch_size,
            prefill_batch_size=min(8, case.batch_size),
        )
        return sum(map(len, response.token_ids))


def timed(sample: Callable[[SamplingCase, list[list[int]]], int], case: SamplingCase, prompts: Any) -> dict[str, float]:
    """Seconds and processor seconds for a token."""
    start, cpu_start = time.perf_counter(), time.process_time()
    num_tokens = sample(case, prompts)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert num_tokens % (case.completions * case.prompts) == 0, "both sample all tokens"
    return {"seconds": seconds / num_tokens, "cpu": cpu_seconds / num_tokens}


def measure_case(contest: Contest, case: SamplingCase, repeats: int) -> dict[str, float]:
    """Tokens a second of both, and the ratios."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(case.lengths[0], case.lengths[1] + 1, case.prompts)
    prompts = [rng.integers(5, VOCABULARY, length).tolist() for length in lengths]
    turns = [(timed(contest.ours, case, prompts), timed(contest.theirs, case, prompts)) for _ in range(repeats)]
    ratios = {key: median(theirs[key] / ours[key] for ours, theirs in turns) for key in ("seconds", "cpu")}
    return {
        "ours": 1 / median(ours["seconds"] for ours, _ in turns),
        "mlx_lm": 1 / median(theirs["seconds"] for _, theirs in turns),
        "ratio": ratios["seconds"],
        "cpu": ratios["cpu"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=64, help="of a completion")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if (environment := with_blas()) != os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    results: dict[str, dict[str, dict[str, float]]] = {}
    about = {"machine": machine(), "versions": versions("mlx", "mlx-lm")}
    for folder in options.models:
        contest = Contest(folder, options.tokens, options.temperature)
        warm_up = SamplingCase(2, 2, (8, 16), 4)
        for sample in (contest.ours, contest.theirs):
            sample(warm_up, [[5] * 9, [6] * 16])
        results[folder] = {}
        for name in options.only or CASES:
            figures = results[folder][name] = measure_case(contest, CASES[name], options.repeats)
            texts = [f"{key} {value:.2f}" for key, value in figures.items()]
            print_status(f"{folder} {name}: {', '.join(texts)}")
    if options.out:
        settings = {name: getattr(options, name) for name in ("tokens", "repeats", "temperature")}
        cases = {name: asdict(case) for name, case in CASES.items()}
        write_json(options.out, {**about, **settings, "cases": cases, "tokens_per_second": results})


if __name__ == "__main__":
    main()
