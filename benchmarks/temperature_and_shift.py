"""The DPO paper's two tests of robustness on the bundled model: other sampling temperatures, questions of another kind.

    python benchmarks/temperature_and_shift.py --output DIR [--quick] [--seeds 2]

Policies are trained by dpo, by ppo on a reward model of the same pairs, and by sft on the preferred answers, on
questions of three kinds: what a tool does, how to do something, and sums. `mlx-dpo evaluate --generate` then has them
answer unseen questions of these kinds and of the four others (opposites, capitals, what animals eat, where they live),
at several temperatures, and a judge compares each answer with the base model's at the same temperature by the true
reward: 1 if it is polite and right, else 0.

Writes temperature_and_shift.json and .png (by matplotlib) into DIR, and prints tables. Under ten minutes on two idle
cores. What DIR has is not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from bundled_task import Sampler, interval, judged_pairs, polite_and_right, write_float_model
from frontier_runs import ANSWERS_TO_PAIR, OFFLINE, PPO, PPO_STEPS, REWARD_MODEL, LearnedReward, measure
from processes import machine, print_status, restart_with_blas, versions, with_blas, write_json
from rich.console import Console
from rich.table import Table

from mlx_dpo import TrainConfig, train
from mlx_dpo.demo import load_pairs
from mlx_dpo.demo.grammar import questions
from mlx_dpo.demo.topics import SUM_FORMS, TASK_FORMS, TOOL_FORMS

TRAINED_KINDS = (TOOL_FORMS, TASK_FORMS, SUM_FORMS)
METHODS = ("dpo", "ppo", "sft")
SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {**OFFLINE, "loss": "sigmoid", "beta": 0.1, "epochs": 1.5},
    "ppo": {**PPO, "kl_coef": 0.2, "iters": PPO_STEPS[-1]},
    "sft": {**OFFLINE, "loss": "sft", "epochs": 1.5},
}
SETS = {"same": "of the kinds trained on", "other": "of other kinds"}
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
HELD_OUT = 128  # questions of each set
JUDGE = f"{Path(__file__).resolve().with_name('bundled_task.py')}:polite_and_right"


def is_trained_kind(question: str) -> bool:
    """Whether a question is of a kind that the policies are trained on."""
    return questions()[question].forms in TRAINED_KINDS


def split_rows(seed: int) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
    """The questions to train on, and held-out rows of both sets; the base model was trained on none of them."""
    rows = [*load_pairs("valid"), *load_pairs("train")]
    random.Random(seed).shuffle(rows)
    same = [row for row in rows if is_trained_kind(row["prompt"])]
    other = [row for row in rows if not is_trained_kind(row["prompt"])]
    return [row["prompt"] for row in same[HELD_OUT:]], {"same": same[:HELD_OUT], "other": other[:HELD_OUT]}


def train_policies(folder: Path, seed: int, model: Path) -> None:
    """Train the policies of a seed that the folder lacks; each leaves an adapter with its name."""
    prompts, _ = split_rows(seed)
    file = folder / "pairs.json"
    if not file.exists():
        answers = Sampler(folder=model).sample(prompts, ANSWERS_TO_PAIR, 1000 + seed)
        file.write_text(json.dumps(judged_pairs(prompts, [[item.text for item in items] for items in answers], seed)))
    pairs = json.loads(file.read_text())
    for name, settings in {"reward-model": REWARD_MODEL, **SETTINGS}.items():
        if (folder / name / "adapters.safetensors").exists():
            continue
        config = TrainConfig(model=str(model), adapter_path=str(folder / name), seed=seed, **settings)
        if name == "ppo":
            train(config, prompts=prompts, judge=LearnedReward(folder / "reward-model", pairs))
        else:
            train(config, rows=pairs)
        print_status(f"seed {seed}: trained {name}")


def policy_kls(folder: Path, seed: int, model: Path) -> dict[str, dict[str, float]]:
    """The KL of each policy to the base model at temperature 1, by method and set of questions."""
    file = folder / "kls.json"
    if not file.exists():
        kls: dict[str, dict[str, float]] = {}
        for method in METHODS:
            sampler = Sampler(folder / method, model)
            for subset, rows in split_rows(seed)[1].items():
                point = measure(sampler, 1, seed, [row["prompt"] for row in rows])
                kls.setdefault(method, {})[subset] = point["kl"]
        file.write_text(json.dumps(kls))
    return json.loads(file.read_text())


def evaluate(folder: Path, seed: int, subset: str, temperature: float, model: Path) -> list[dict[str, Any]]:
    """What `mlx-dpo evaluate` prints of the policies of a seed, in the order of METHODS."""
    output = folder / f"{subset}-{temperature:g}.json"
    if not output.exists():
        data = folder / f"{subset}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in split_rows(seed)[1][subset]))
        adapters = [text for name in METHODS for text in ("--adapter-path", str(folder / name))]
        command = [
            sys.executable,
            "-m",
            "mlx_dpo",
            "evaluate",
            "--json",
            "--model",
            str(model),
            "--data",
            str(data),
            *adapters,
        ]
        command += ["--generate", str(HELD_OUT), "--judge", JUDGE, "--temp", str(temperature), "--seed", str(seed)]
        command += ["--max-tokens", "64"]
        ran = subprocess.run(command, capture_output=True, text=True, env=with_blas(), check=False)
        if ran.returncode:
            sys.exit(f"{' '.join(command)}\n{ran.stderr}")
        output.write_text(ran.stdout)
        print_status(f"seed {seed}: questions {SETS[subset]} at temperature {temperature:g}")
    return json.loads(output.read_text())["adapters"]


def rewards_of(judged: dict[str, Any]) -> dict[str, float]:
    """Win rate and true reward of a policy, and the base model's reward, from what `evaluate` printed."""
    answers = judged["answers"]
    base, tuned = (np.mean([polite_and_right(a["prompt"], a[name]) for a in answers]) for name in ("base", "tuned"))
    return {"win_rate": judged["win_rate"], "reward": float(tuned), "base_reward": float(base)}


def summarize(
    cells: Iterable[dict[str, Any]], method: str, subset: str, temperature: float, name: str
) -> tuple[float, float, float]:
    """Mean over the seeds of a number, with its interval."""
    key = {"method": method, "set": subset, "temperature": temperature}
    return interval([cell[name] for cell in cells if all(cell[k] == v for k, v in key.items())])


def table_of(cells: list[dict[str, Any]], temperatures: Iterable[float], name: str) -> Table:
    """One number of each method and set, by temperature; the KL is that at temperature 1."""
    temperatures = [1.0] if name == "kl" else list(temperatures)
    table = Table(name.replace("_", " "), "questions", *(f"{value:g}" for value in temperatures))
    for subset, about in SETS.items():
        for method in METHODS:
            values = [summarize(cells, method, subset, value, name)[0] for value in temperatures]
            table.add_row(method, about, *(f"{value:.2f}" for value in values))
        if name == "reward":
            values = [summarize(cells, METHODS[0], subset, value, "base_reward")[0] for value in temperatures]
            table.add_row("base model", about, *(f"{value:.2f}" for value in values))
    return table


def plot(cells: list[dict[str, Any]], temperatures: Iterable[float], file: Path) -> None:
    """Reward over temperature for both sets of questions, with a small marker for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from frontier_plot import COLOURS
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(7.5, 3.2), sharey=True)
    for axis, (subset, about) in zip(axes, SETS.items(), strict=True):
        for method in METHODS:
            colour, marker = COLOURS[method]
            means = [summarize(cells, method, subset, value, "reward")[0] for value in temperatures]
            axis.plot(temperatures, means, color=colour, linewidth=1, label=method)
            own = [cell for cell in cells if (cell["method"], cell["set"]) == (method, subset)]
            axis.plot(
                [cell["temperature"] for cell in own],
                [cell["reward"] for cell in own],
                marker,
                color=colour,
                markersize=3.5,
                markeredgewidth=0,
            )
        base = [summarize(cells, METHODS[0], subset, value, "base_reward")[0] for value in temperatures]
        axis.plot(temperatures, base, "--", color="black", linewidth=1, label="base model")
        axis.set(title=f"questions {about}", xlabel="sampling temperature", ylim=(0, 1.03))
        axis.title.set_fontsize(9)
        axis.grid(color="#E5E5E5", linewidth=0.6)
    axes[0].set_ylabel("true reward")
    axes[0].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(file, dpi=160)
    print_status(f"wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the results and the runs")
    parser.add_argument("--quick", action="store_true", help="one seed and temperatures 0, 0.5 and 1")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 2; with --quick 1)")
    options = parser.parse_args()
    restart_with_blas()
    about = {"machine": machine(), "versions": versions("mlx-dpo", "mlx", "mlx-lm")}
    temperatures = (0.0, 0.5, 1.0) if options.quick else TEMPERATURES
    model, cells = options.output / "model", list[dict[str, Any]]()
    write_float_model(model)
    for seed in range(options.seeds or (1 if options.quick else 2)):
        folder = options.output / f"seed-{seed}"
        folder.mkdir(exist_ok=True)
        train_policies(folder, seed, model)
        kls = policy_kls(folder, seed, model)
        for subset in SETS:
            for temperature in temperatures:
                for method, summary in zip(METHODS, evaluate(folder, seed, subset, temperature, model), strict=True):
                    numbers = {**rewards_of(summary["head_to_head"]), "kl": kls[method][subset]}
                    cells.append({"method": method, "seed": seed, "set": subset, "temperature": temperature, **numbers})
    write_json(options.output / "temperature_and_shift.json", {**about, "settings": SETTINGS, "cells": cells})
    plot(cells, temperatures, options.output / "temperature_and_shift.png")
    for name in ("win_rate", "reward", "kl"):
        Console(highlight=False, width=130).print(table_of(cells, temperatures, name))


if __name__ == "__main__":
    main()
