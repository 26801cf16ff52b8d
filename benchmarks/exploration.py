"""Does training on one's own answers find what offline pairs never contain?

    python benchmarks/exploration.py [--seeds 5] [--steps 60] [--out docs/exploration.json]

On the bundled model, the true reward of an answer is 1 if it is polite and closes by naming its topic ("Enjoy
trains!"), 0.5 if it is polite otherwise, and 0 if it is curt or not fluent. Few of the model's own answers have the
best manner, and the offline pairs, sampled from it and judged by the true reward, have none of them. Compared are, each
for every seed:

    online             online DPO: every batch is sampled from the current policy
    rounds             four rounds of sampling, judging and training (iterative DPO)
    offline            DPO on as many of these pairs as the online run was trained on
    offline, longer    the same pairs for as long as it takes to use the online run's compute
    ..., low rate      and with less than half of the learning rate

Compute is counted in tokens through the model: 1 for a forward pass (sampling, reference), 3 for a training step.
Prints a table; writes the numbers (JSON) and a figure beside it (PNG, by matplotlib). What the JSON file has is not run
again.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from bundled_task import MAX_TOKENS, interval, sample_answers
from mlx_lm import load
from processes import machine, print_status, versions, write_json
from rich.console import Console
from rich.table import Table

from mlx_dpo import TrainConfig, train
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Prompt
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.demo.grammar import PHRASES, detect_manner, is_fluent, questions
from mlx_dpo.judges.judge import Answer, ScalarJudge
from mlx_dpo.reporting.rollout_log import RolloutLog, read_rollouts

BATCH, ROUNDS, FORWARD, STEP = 8, 4, 1, 3
RATE, LOW_RATE = 5e-4, 2e-4
SETTINGS: dict[str, Any] = {"model": str(MODEL), "batch_size": BATCH, "save_every": 0}
ON_POLICY = ("online", "rounds")
METHODS = ("base model", *ON_POLICY, "offline", "offline, longer", "offline, longer, low rate")
BEST_CLOSINGS = [text for text in PHRASES["polite"].closings if "{name}" in text]


def has_best_manner(question: str, answer: str) -> bool:
    """Whether an answer is polite, fluent, and closes by naming the topic of the question."""
    if detect_manner(answer) != "polite" or not is_fluent(question, answer):
        return False
    name = questions()[question].name
    return answer.strip().endswith(tuple(text.replace("{name}", name) for text in BEST_CLOSINGS))


def true_reward(question: str, answer: str) -> float:
    """The reward of an answer, from 0 to 1."""
    if has_best_manner(question, answer):
        return 1.0
    return 0.5 if detect_manner(answer) == "polite" and is_fluent(question, answer) else 0.0


class TrueReward(ScalarJudge):
    """The true reward as a judge."""

    name = identity = "true reward"

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """See `Judge.scores`."""
        return [true_reward(str(answer.prompt), answer.completion) for answer in answers]


def offline_pairs(prompts: Sequence[str], seed: int) -> list[dict[str, str]]:
    """Pairs of the model's own answers by the true reward, none of which has the best manner; in random order."""
    pairs = []
    for prompt, answers in zip(prompts, sample_answers(None, prompts, 3, 1000 + seed), strict=True):
        known = sorted((a for a in answers if not has_best_manner(prompt, a)), key=lambda a: true_reward(prompt, a))
        if known and true_reward(prompt, known[-1]) > true_reward(prompt, known[0]):
            pairs.append({"prompt": prompt, "chosen": known[-1], "rejected": known[0]})
    random.Random(seed).shuffle(pairs)
    return pairs


def measure(adapter: Path | None, seed: int) -> dict[str, float]:
    """Means over answers to held-out questions."""
    prompts = [str(row["prompt"]) for row in load_pairs("valid")]
    answers = sample_answers(adapter, prompts, 2, seed)
    pairs = [(prompt, answer) for prompt, items in zip(prompts, answers, strict=True) for answer in items]
    return {
        "reward": float(np.mean([true_reward(*pair) for pair in pairs])),
        "best manner": float(np.mean([has_best_manner(*pair) for pair in pairs])),
        "polite": float(np.mean([detect_manner(answer) == "polite" for _, answer in pairs])),
        "fluent": float(np.mean([is_fluent(*pair) for pair in pairs])),
    }


def run_on_policy(folder: Path, prompts: Sequence[str], seed: int, steps: int, ahead: int) -> dict[str, float]:
    """Train on sampled answers; the number of trained pairs and the compute."""
    config = TrainConfig(
        on_policy=True,
        adapter_path=str(folder),
        seed=seed,
        iters=steps,
        rollout_batches=ahead,
        learning_rate=RATE,
        max_tokens=MAX_TOKENS,
        **SETTINGS,
    )
    train(config, prompts=[Prompt(prompt) for prompt in prompts], judge=TrueReward(), listener=RolloutLog())
    lengths = prompt_lengths(prompts)
    compute = pairs = 0
    for line in read_rollouts(folder):
        sampled = lengths[line["prompt_index"]] + sum(line["tokens"])
        compute += 2 * FORWARD * sampled
        if line["chosen"] is not None:
            pairs, compute = pairs + 1, compute + STEP * sampled
    return {"pairs": pairs, "compute": compute}


def run_offline(
    folder: Path, rows: list[dict[str, str]], seed: int, compute: float | None, rate: float
) -> dict[str, float]:
    """Train on pairs, once or for as long as the compute lasts; the number of pairs and the compute."""
    tokenizer = load(str(MODEL))[1]
    lengths = prompt_lengths([row["prompt"] for row in rows])
    answers = [[len(tokenizer.encode(row[name])) + 1 for name in ("chosen", "rejected")] for row in rows]
    tokens = sum(lengths) + sum(map(sum, answers))
    epochs = 1.0 if compute is None else max(1.0, (compute / tokens - FORWARD) / STEP)
    config = TrainConfig(
        adapter_path=str(folder), seed=seed, epochs=epochs, learning_rate=rate, valid_pairs=0, **SETTINGS
    )
    train(config, rows=rows)
    return {"pairs": len(rows), "compute": tokens * (FORWARD + STEP * epochs)}


def prompt_lengths(prompts: Sequence[str]) -> list[int]:
    """Tokens of each prompt."""
    renderer = ChatRenderer(load(str(MODEL))[1])
    return [len(renderer.prompt_ids(Prompt(prompt))) for prompt in prompts]


def run_seed(seed: int, steps: int, results: dict[str, dict[str, float]]) -> Iterator[str]:
    """Run the methods that are missing in a seed's results, and yield the name of each when it is done."""
    prompts = [str(row["prompt"]) for row in load_pairs("train")]
    for method in METHODS:
        if method in results:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder, counts = Path(name) / "run", dict[str, float]()
            if method in ON_POLICY:
                ahead = 1 if method == "online" else -(-steps // ROUNDS)
                counts = run_on_policy(folder, prompts, seed, steps, ahead)
            elif method != "base model":
                online = results["online"]
                rows = offline_pairs(prompts[: BATCH * steps], seed)
                rows = [rows[i % len(rows)] for i in range(int(online["pairs"]))]
                compute = online["compute"] if "longer" in method else None
                counts = run_offline(folder, rows, seed, compute, LOW_RATE if "low rate" in method else RATE)
            results[method] = {**measure(folder if counts else None, seed), **counts}
        mx.clear_cache()
        yield method


def table_of(seeds: dict[str, Any]) -> Table:
    """Means over the seeds."""
    table = Table("", "true reward", "best manner", "polite", "fluent", "pairs", "compute, 1,000 tokens")
    for method in METHODS:
        runs = [results[method] for results in seeds.values()]
        cells = []
        for name in ("reward", "best manner", "polite", "fluent"):
            mean, low, high = interval([run[name] for run in runs])
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        counts = ["", ""]
        if "pairs" in runs[0]:
            pairs, compute = (float(np.mean([run[name] for run in runs])) for name in ("pairs", "compute"))
            counts = [f"{pairs:.0f}", f"{compute / 1e3:.0f}"]
        table.add_row(method, *cells, *counts)
    return table


def plot(seeds: dict[str, Any], file: Path) -> None:
    """Share of answers in the best manner and mean reward of each method, with a point for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, name, label in zip(
        axes, ("best manner", "reward"), ("share in the best manner", "true reward"), strict=True
    ):
        for row, method in enumerate(METHODS):
            values = [results[method][name] for results in seeds.values()]
            mean, low, high = interval(values)
            axis.barh(row, mean, color="tab:blue" if method in ON_POLICY else "tab:gray", alpha=0.6)
            axis.plot([low, high], [row, row], color="black", linewidth=1.5)
            axis.plot(values, [row] * len(values), "k.", markersize=4)
        axis.set_xlabel(label)
        axis.set_xlim(0, 1)
        axis.set_yticks(range(len(METHODS)), METHODS)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    print_status(f"wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of the online run (default: 60)")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/exploration.json"), help="default: docs/exploration.json"
    )
    options = parser.parse_args()
    about = {"machine": machine(), "versions": versions("mlx-dpo", "mlx", "mlx-lm"), "steps": options.steps}
    seeds = json.loads(options.out.read_text())["seeds"] if options.out.exists() else {}
    for seed in range(options.seeds):
        results = seeds.setdefault(str(seed), {})
        for method in run_seed(seed, options.steps, results):
            print_status(f"seed {seed}, {method}: {results[method]}")
            write_json(options.out, {**about, "seeds": seeds})
    Console(highlight=False).print(table_of(seeds))
    plot(seeds, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
