"""The DPO paper's frontier of reward and KL (its figure 2, left) on the bundled model, whose true reward is known.

    python benchmarks/frontier.py --output DIR [--quick] [--seeds 3]

The reward of an answer is 1 if it is polite and right, else 0. As in the paper, the pairs are answers of the reference,
which is the bundled model, to training questions, and the true reward prefers one. Compared are, each for every seed:

    dpo, ipo, kto      on the pairs; dpo with several betas and two learning rates
    sft                fine-tuning on the preferred answers
    unlikelihood       log p(chosen) - alpha log p(rejected), benchmarks/unlikelihood.py
    ppo                on the outputs of a reward model that is trained on the same pairs
    ppo-true-reward    on the true reward
    best-of-n          the best of n answers of the reference by the true reward

Each run is measured after several steps: KL to the reference and true reward of answers to held-out questions at
temperature 1. Writes frontier.json, frontier.svg and frontier.png (by matplotlib) into DIR, and prints the rewards at
equal KL. Two runs at a time; about a quarter of an hour on two idle cores, and --quick four minutes. Runs that DIR has
are not made again: stop it when you like, and start it again.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundled_task import interval, write_float_model
from frontier_curves import Point, equal_kl_rows, optimal_curve
from frontier_plot import plot
from frontier_runs import BEST_OF_N, OFFLINE_STEPS, PPO_STEPS, SAMPLES, Run, all_runs, finished_points
from processes import machine, print_status, versions, with_blas, write_json
from rich.console import Console
from rich.table import Table

WORKERS = 2
KLS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SCRIPT = Path(__file__).resolve().with_name("frontier_runs.py")


class RunFailed(Exception):
    """A run ended without points; the message has the end of its log."""


def start(folder: Path, run: Run) -> subprocess.Popen[bytes]:
    """A run in a process of its own, with one thread."""
    (folder / "logs").mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(folder), run.name]
    environment = {**with_blas(), "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "logs" / f"{run.name}.txt").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def make_runs(folder: Path, runs: Sequence[Run]) -> None:
    """Make the runs that the folder lacks, two at a time. Raises `RunFailed`."""
    waiting = [run for run in runs if finished_points(folder, run) is None]
    total, began, running = len(waiting), time.monotonic(), dict[str, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < WORKERS:
                run = waiting.pop(0)
                running[run.name] = start(folder, run)
            time.sleep(0.2)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if running.pop(name).returncode:
                    lines = (folder / "logs" / f"{name}.txt").read_text().splitlines()
                    raise RunFailed("\n".join([f"{name} failed:", *lines[-15:]]))
                done = total - len(waiting) - len(running)
                minutes = (time.monotonic() - began) / 60
                print_status(
                    f"{name}: {done} of {total}, {minutes:.1f} min, {minutes / done * (total - done):.1f} left"
                )
    finally:
        for process in running.values():
            process.kill()


def result(folder: Path, runs: Sequence[Run], about: dict[str, Any]) -> dict[str, Any]:
    """What frontier.json holds."""
    points: list[Point] = [point for run in runs for point in finished_points(folder, run) or []]
    base = interval([point["reward"] for point in points if point["method"] == BEST_OF_N and point["n"] == 1])[0]
    return {
        **about,
        "measured": {"answers_to_a_question": SAMPLES, "offline_steps": OFFLINE_STEPS, "ppo_steps": PPO_STEPS},
        "runs": {run.name: run.config for run in runs},
        "reference_reward": base,
        "optimum": [{"kl": kl, "reward": reward} for kl, reward in optimal_curve(base)],
        "equal_kl": equal_kl_rows(points, base, KLS),
        "points": [{k: round(v, 5) if isinstance(v, float) else v for k, v in point.items()} for point in points],
    }


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Rewards at equal KL."""
    table = Table("true reward at KL", *(f"{kl:g}" for kl in KLS))
    for row in rows:
        table.add_row(row["method"], *(cell_text(row["rewards"][f"{kl:g}"]) for kl in KLS))
    return table


def cell_text(cell: dict[str, Any] | None) -> str:
    """A mean with its interval over seeds, if there are several."""
    if cell is None:
        return ""
    low, high = cell["interval"]
    return f"{cell['mean']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if cell["seeds"] > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the results and the runs")
    parser.add_argument("--quick", action="store_true", help="one seed, and DPO with one beta")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 3; with --quick 1)")
    parser.add_argument("--json", action="store_true", help="print the rewards at equal KL as JSON")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    folder = options.output
    about = {"machine": machine(), "versions": versions("mlx-dpo", "mlx", "mlx-lm")}
    write_float_model(folder / "model")
    first, others = all_runs(options.seeds or (1 if options.quick else 3), options.quick)
    try:
        for runs in (first, others):
            make_runs(folder, runs)
    except RunFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the runs that are finished")
    numbers = result(folder, others, about)
    write_json(folder / "frontier.json", numbers)
    plot(numbers, folder)
    if options.json:
        print(json.dumps(numbers["equal_kl"], indent=2))
    else:
        Console(highlight=False).print(table_of(numbers["equal_kl"]))


if __name__ == "__main__":
    main()
