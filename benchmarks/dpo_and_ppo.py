"""Memory and compute of two pipelines to the same true reward: DPO, and a reward model with PPO.

    python benchmarks/dpo_and_ppo.py --output DIR --case bundled [--seeds 3] [--jobs 1]
    python benchmarks/dpo_and_ppo.py --output DIR --case real --model CASE/model

The case bundled runs on the bundled model in float32, as frontier.py does. The case real needs what real_case.py
leaves, and `pip install vaderSentiment`. Both pipelines learn from the same pairs, which the true reward has judged;
PPO sees it only through the reward model that they have taught. Each part runs in a process of its own
(drive_pipeline.py), checkpoints are measured by the true reward on held-out prompts, and costs are compared where the
two curves of the true reward reach the same level. What is counted is in model_products.py.

Leaves DIR/dpo-and-ppo.json and DIR/dpo-and-ppo.md. Parts that are in DIR already are not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from bundled_task import write_float_model
from pipeline_cases import PipelineCase, make_case
from pipeline_costs import (
    compare_at,
    costs_at,
    highest,
    kl_at,
    resident_bytes,
    textbook_products,
    tokens_by_kind,
    total,
)
from processes import machine, measure, print_status, versions, write_json

PARTS = ("pairs", "dpo", "reward", "ppo", "measure-base", "measure-dpo", "measure-ppo")
PIPELINES = {"dpo": "DPO", "reward": "reward model", "ppo": "PPO", "rlhf": "PPO-RLHF: both"}
KINDS_OF_TOKENS = ("generated", "forward", "forward+backward")
FLOAT_BYTES = 4


def run_seed(case: PipelineCase, folder: Path, seed: int) -> dict[str, Any]:
    """The figures of all parts of a seed; runs those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part in PARTS:
        file = folder / f"{part}.json"
        if not file.exists():
            print_status(f"seed {seed}, {part}")
            shutil.rmtree(folder / part, ignore_errors=True)  # of a run that was interrupted
            figures = measure(sys.executable, "drive_pipeline.py", case.name, case.model, part, folder, seed)
            write_json(file, figures)
        parts[part] = json.loads(file.read_text())
    for name in ("measure-dpo", "measure-ppo"):
        parts[name]["checkpoints"][:0] = parts["measure-base"]["checkpoints"]
    return parts


def levels_of(case: PipelineCase, seeds: Sequence[dict[str, Any]]) -> list[float]:
    """The case's levels; by default a third, two thirds and all of the way to what both pipelines reach on average."""
    if case.levels:
        return list(case.levels)
    start = mean(parts["measure-dpo"]["checkpoints"][0]["reward"] for parts in seeds)
    names = ("measure-dpo", "measure-ppo")
    best = min(mean(highest(parts[name]["checkpoints"])["reward"] for parts in seeds) for name in names)
    return [round(start + share * (best - start), 3) for share in (1 / 3, 2 / 3, 1)]


def summarize(seeds: Sequence[dict[str, Any]], level: float) -> dict[str, Any]:
    """Costs to a level, means over the seeds in which both pipelines reach it, and the share that DPO saves."""
    compared = [compare_at(level, parts) for parts in seeds]
    both = [(item, parts) for item, parts in zip(compared, seeds, strict=True) if item["dpo"] and item["rlhf"]]
    summary: dict[str, Any] = {"level": level, "seeds": len(both), "of": len(seeds)}
    if not both:
        return summary
    for name in PIPELINES:
        costs = [item[name] for item, _ in both]
        summary[name] = {
            "tokens": {kind: mean(tokens_by_kind(cost)[kind] for cost in costs) for kind in tokens_by_kind(costs[0])},
            "products": {
                purpose.removeprefix("products/"): mean(cost[purpose] for cost in costs)
                for purpose in costs[0]
                if purpose.startswith("products/")
            },
            "total_products": mean(total(cost, "products") for cost in costs),
            "cpu": mean(cost["cpu"] for cost in costs),
            "wall": mean(cost["wall"] for cost in costs),
        }
    for name in ("dpo", "ppo"):
        summary[name]["step"] = mean(item["steps"][name] for item, _ in both)
        summary[name]["kl"] = mean(
            kl_at(parts[f"measure-{name}"]["checkpoints"], item["steps"][name]) for item, parts in both
        )
    ratios = [total(item["dpo"], "products") / total(item["rlhf"], "products") for item, _ in both]
    summary["saved"] = {
        "products": 1 - summary["dpo"]["total_products"] / summary["rlhf"]["total_products"],
        "products_by_seed": [1 - ratio for ratio in ratios],
        "products_without_reward_model": 1 - summary["dpo"]["total_products"] / summary["ppo"]["total_products"],
        "cpu": 1 - summary["dpo"]["cpu"] / summary["rlhf"]["cpu"],
        "wall": 1 - summary["dpo"]["wall"] / summary["rlhf"]["wall"],
    }
    return summary


def curve_of(parts: dict[str, Any], name: str) -> list[dict[str, float]]:
    """A run's checkpoints, with the multiply-adds up to each."""
    steps = parts[name]["steps"]
    lines = parts[f"measure-{name}"]["checkpoints"]
    return [{**line, "products": total(costs_at(steps, line["step"]), "products")} for line in lines]


def memory_of(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Peak memory of the processes in MB, the largest of the seeds; bytes that are counted; and the shares saved."""
    peaks = {
        name: {part: max(parts[part][name] for parts in seeds) for part in ("dpo", "reward", "ppo")}
        for name in ("peak_mb", "resident_peak_mb")
    }
    dpo = seeds[0]["dpo"]
    adapter = dpo["trained_parameters"] * FLOAT_BYTES
    counted = resident_bytes(dpo["weight_bytes"] - adapter, adapter)
    saved = {name: 1 - of["dpo"] / max(of["reward"], of["ppo"]) for name, of in peaks.items()}
    saved |= {name: 1 - of["dpo"] / of["ppo"] for name, of in counted.items()}
    return {"peaks": peaks, "counted": counted, "saved": saved}


def textbook_of(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Multiply-adds of the whole runs if no weights were shared or frozen, beside those counted here."""
    counted = [textbook_products(parts) for parts in seeds]
    here = {part: mean(sum(parts[part]["steps"][-1]["products"].values()) for parts in seeds) for part in counted[0]}
    return {"textbook": {part: mean(item[part] for item in counted) for part in counted[0]}, "here": here}


def number(value: float) -> str:
    """A figure of three digits, or thousands with separators."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cost_table(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of what each pipeline takes to each level."""
    names = ["true reward", "", "steps", "KL, nats", *KINDS_OF_TOKENS, "multiply-adds, 10^9", "processor time"]
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for item in summaries:
        if not item["seeds"]:
            lines.append(f"| {item['level']:.2f} | not reached by both |" + " |" * 7)
            continue
        for name, label in PIPELINES.items():
            costs, is_first = item[name], name == "dpo"
            cells = [f"{item['level']:.2f}" if is_first else "", label]
            cells += [number(costs[key]) if key in costs else "" for key in ("step", "kl")]
            cells += [number(costs["tokens"][kind]) for kind in KINDS_OF_TOKENS]
            cells += [number(costs["total_products"] / 1e9), f"{costs['cpu'] / item['dpo']['cpu']:.1f} x"]
            lines.append(f"| {' | '.join(cells)} |")
        saved = item["saved"]
        by_seed = ", ".join(f"{share:.0%}" for share in saved["products_by_seed"])
        seeds = f" ({by_seed})" if item["of"] > 1 else ""
        label = "saved by DPO" + (f" in {item['seeds']} of {item['of']} seeds" if item["seeds"] < item["of"] else "")
        lines.append(f"| | **{label}** | | | | | | **{saved['products']:.0%}**{seeds} | {saved['cpu']:.0%} |")
    return lines


def memory_table(memory: dict[str, Any]) -> list[str]:
    """Rows of what each process takes, and of what is counted."""
    lines = ["| MB | DPO | reward model | PPO | saved by DPO |", "| --- | --- | --- | --- | --- |"]
    labels = {"peak_mb": "peak of mlx's arrays, measured", "resident_peak_mb": "peak of the process, measured"}
    for name, label in labels.items():
        cells = [number(memory["peaks"][name][part]) for part in ("dpo", "reward", "ppo")]
        lines.append(f"| {label} | {' | '.join(cells)} | {memory['saved'][name]:.0%} |")
    labels = {
        "shared": "weights and optimizer, as here, counted",
        "copies": "the same with four models and adapters, counted",
        "textbook": "the same with four models, all weights trained, counted",
    }
    for name, label in labels.items():
        counted = memory["counted"][name]
        cells = [number(counted["dpo"] / 1e6), "", number(counted["ppo"] / 1e6)]
        lines.append(f"| {label} | {' | '.join(cells)} | {memory['saved'][name]:.0%} |")
    return lines


def report(result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [f"## {result['case']}", "", *cost_table(result["levels"]), "", *memory_table(result["memory"]), ""]
    products = result["products"]
    for name, label in (("here", "as here"), ("textbook", "no weights shared or frozen")):
        texts = [f"{part} {number(products[name][part] / 1e9)}" for part in products[name]]
        lines.append(f"Whole runs, {label}, 10^9 multiply-adds: {', '.join(texts)}.")
    for name in ("dpo", "ppo"):
        curves = [
            " ".join(f"{line['step']}: {line['reward']:.2f} ({line['kl']:.2f})" for line in curve)
            for curve in result["curves"][name]
        ]
        lines += ["", f"{name}, true reward (KL) by step: {'; '.join(curves)}"]
    texts = [f"{item['pairs']} pairs, {number(item['products'] / 1e9)}" for item in result["pairs"]]
    lines += ["", f"Sampling the pairs, which both need, 10^9 multiply-adds: {'; '.join(texts)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--case", choices=["bundled", "real"], default="bundled")
    parser.add_argument("--seeds", type=int, help="default: 3, and 1 for real")
    parser.add_argument("--jobs", type=int, default=1, help="seeds to run side by side (default: 1)")
    parser.add_argument("--model", help="folder of the case real's model")
    options = parser.parse_args()
    if options.case == "real" and not options.model:
        parser.error("--case real needs --model")
    if options.case == "bundled":
        write_float_model(options.output / "model")
    case = make_case(options.case, options.model or str(options.output / "model"))
    count = options.seeds or (1 if options.case == "real" else 3)
    with ThreadPoolExecutor(options.jobs) as pool:  # its threads only wait for processes
        seeds = list(pool.map(lambda seed: run_seed(case, options.output / f"seed-{seed}", seed), range(count)))
    result = {
        "case": case.name,
        "settings": {part: case.settings(part) for part in ("dpo", "reward", "ppo")},
        "levels": [summarize(seeds, level) for level in levels_of(case, seeds)],
        "memory": memory_of(seeds),
        "products": textbook_of(seeds),
        "curves": {name: [curve_of(parts, name) for parts in seeds] for name in ("dpo", "ppo")},
        "pairs": [parts["pairs"] for parts in seeds],
    }
    about = {"machine": machine(), "versions": versions("mlx-dpo", "mlx", "mlx-lm"), "seeds": count}
    write_json(options.output / "dpo-and-ppo.json", {**about, **result})
    text = report(result)
    (options.output / "dpo-and-ppo.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
