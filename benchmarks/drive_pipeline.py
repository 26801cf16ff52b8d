"""Run a part of a pipeline and print its figures as one JSON object; dpo_and_ppo.py calls it.

    python benchmarks/drive_pipeline.py CASE MODEL PART FOLDER SEED

CASE is bundled or real, and PART one of

    pairs        sample answers, and choose the pairs by the true reward (FOLDER/pairs.jsonl)
    dpo          the reference's log-probs of the pairs, and DPO
    reward       the reward model, from the same pairs
    ppo          PPO with this reward model
    measure-base, measure-dpo, measure-ppo
                 the true reward and the KL, on held-out prompts, of the model before, or of a run's checkpoints
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from compute_meter import ComputeMeter, RunClock
from model_products import ModelSize, sampling_work
from pipeline_cases import PipelineCase, choose_pairs, make_case, read_pairs
from processes import print_status, resident_peak

from mlx_dpo import TrainConfig, train
from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.examples import Completion, Prompt
from mlx_dpo.data.micro_batches import split_into_micro_batches
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SampledCompletion, SamplingParams
from mlx_dpo.training.run_folder import RunFolder


def run_part(case: PipelineCase, part: str, folder: Path, seed: int) -> dict[str, Any]:
    """Run a part, and return its figures."""
    if part == "pairs":
        return make_pairs(case, folder, seed)
    if part == "measure-base":
        return {"checkpoints": [{"step": 0, **measure_policy(case, None)}]}
    if part.startswith("measure-"):
        return {"checkpoints": measure_checkpoints(case, folder / part.removeprefix("measure-"))}
    return train_part(case, part, folder, seed)


def train_part(case: PipelineCase, part: str, folder: Path, seed: int) -> dict[str, Any]:
    """Train, and return what it took after each step."""
    run = folder / part
    config = TrainConfig(
        model=case.model,
        adapter_path=str(run),
        seed=seed,
        keep_checkpoints=0,
        steps_per_eval=0,
        **({"reward_model": str(folder / "reward")} if part == "ppo" else {"valid_pairs": 0}),
        **case.settings(part),
    )
    meter = ComputeMeter()
    with meter.counting():
        if part == "ppo":
            train(config, prompts=list(map(Prompt, case.prompts)), listener=meter)
        else:
            train(config, rows=read_pairs(folder), listener=meter)
    assert meter.max_recomputed == 0, "what is computed again in the backward pass is not counted"
    model = meter.model
    return {
        "steps": meter.steps,
        "work": {name: vars(work) for name, work in meter.work.items()},
        "size": vars(ModelSize.from_model(model)),
        "weight_bytes": sum(array.nbytes for _, array in nn.utils.tree_flatten(model.parameters())),
        "trained_parameters": sum(array.size for array in trainable_tensors(model).values()),
        **memory_peaks(),
    }


def memory_peaks() -> dict[str, float]:
    """Peaks of this process, in MB."""
    return {"peak_mb": round(mx.get_peak_memory() / 1e6, 1), "resident_peak_mb": resident_peak()}


class Sampler:
    """A model that samples answers to prompts, with an adapter or without."""

    def __init__(self, case: PipelineCase, adapter: Path | None = None) -> None:
        self.case, self.model, self.tokenizer = case, load_model(case.model).model, load_tokenizer(case.model)
        if adapter:
            load_adapter(self.model, adapter)
        self.renderer = ChatRenderer(self.tokenizer, raw=bool(case.common.get("raw")))

    def prompt_ids(self, prompts: Sequence[str]) -> list[Any]:
        """Token ids of the prompts."""
        return [self.renderer.prompt_ids(Prompt(prompt)) for prompt in prompts]

    def sample(self, prompts: Sequence[Any], count: int, seed: int) -> list[list[SampledCompletion]]:
        """Completions of each prompt's token ids."""
        params = SamplingParams(self.case.common["max_tokens"], self.case.common["temperature"], seed=seed)
        width = self.case.side_by_side
        return sample_completions(self.model, self.tokenizer, prompts, params, n=count, batch_size=width)


def make_pairs(case: PipelineCase, folder: Path, seed: int) -> dict[str, Any]:
    """Sample answers of the reference, write the pairs, and return what sampling took."""
    sampler, clock = Sampler(case), RunClock()
    prompts = sampler.prompt_ids(case.prompts)
    completions = sampler.sample(prompts, case.pairs_from, 1000 + seed)
    wall, cpu = clock.seconds()
    answers = [[item.text for item in items] for items in completions]
    pairs = choose_pairs(case.prompts, answers, case.true_reward)
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    work, size = sampling_work(prompts, completions), ModelSize.from_model(sampler.model)
    rewards = [case.true_reward(p, text) for p, texts in zip(case.prompts, answers, strict=True) for text in texts]
    return {
        "pairs": len(pairs),
        "mean_reward": float(np.mean(rewards)),
        "work": vars(work),
        "products": size.products(work, backward=False),
        "wall": wall,
        "cpu": cpu,
        **memory_peaks(),
    }


def measure_checkpoints(case: PipelineCase, run: Path) -> list[dict[str, float]]:
    """The true reward of answers to held-out prompts, and their KL to the reference, at each checkpoint of a run."""
    results = []
    for folder in RunFolder(run).checkpoints():
        results.append({"step": int(folder.name), **measure_policy(case, folder)})
        print_status(f"{run.name}: {results[-1]}")
        mx.clear_cache()
    return results


def measure_policy(case: PipelineCase, adapter: Path | None) -> dict[str, float]:
    """The mean true reward, its standard error, and the mean KL of an answer in nats."""
    sampler = Sampler(case, adapter)
    prompts = sampler.prompt_ids(case.held_out)
    completions = sampler.sample(prompts, case.answers, 7)
    rewards = [
        [case.true_reward(prompt, item.text) for item in items]
        for prompt, items in zip(case.held_out, completions, strict=True)
    ]
    by_prompt = np.mean(rewards, axis=1)
    kl = sequence_kl(sampler.model, prompts, completions) if adapter else 0.0
    error = float(np.std(by_prompt, ddof=1) / len(by_prompt) ** 0.5)
    return {"reward": float(by_prompt.mean()), "error": error, "kl": kl}


def sequence_kl(model: nn.Module, prompts: Sequence[Any], completions: Sequence[Sequence[SampledCompletion]]) -> float:
    """The mean log-ratio of what was sampled, in nats; the model is left without its adapter."""
    for module in model.modules():
        if "lora_b" in module:
            module.lora_b = mx.zeros_like(module.lora_b)
    network = Network.from_model(model)
    examples = [
        EncodedExample(prompt, (item.token_ids,), Completion("", ""))
        for prompt, items in zip(prompts, completions, strict=True)
        for item in items
    ]
    batches = split_into_micro_batches(examples, MemoryModel(network).fits)
    reference = sum(float(network.logps(batch).sums.sum()) for batch in batches)
    policy = sum(sum(item.logps) for items in completions for item in items)
    return (policy - reference) / len(examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case")
    parser.add_argument("model", help="its folder")
    parser.add_argument("part")
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    stdout, sys.stdout = sys.stdout, sys.stderr
    result = run_part(make_case(options.case, options.model), options.part, options.folder, options.seed)
    print(json.dumps(result), file=stdout)


if __name__ == "__main__":
    main()
