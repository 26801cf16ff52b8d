"""Whether memory stays flat in a long run, and whether nothing is lost in a rough hour: the bundled model and pairs.

    python benchmarks/soak.py [--steps 5000] [--out docs/soak.json]
    python benchmarks/soak.py --chaos [--minutes 60] [--seed 0] [--round N] [--json] [--out docs/chaos.json]

The first trains on pairs of mixed lengths. It prints, every hundred steps, Python's memory, MLX's active and cache
memory and the number of live mlx arrays; it ends with exit code 1 where any of them has grown by more than 5% over its
peak in the first 200 steps.

With --chaos, train, score, fuse, evaluate and push are killed, interrupted, and deprived of room on disk, of their
model, their data or their output folder, at random moments, or find a damaged cache. Then the same command is run until
it finishes. Exit code 1 where something that was saved is lost, a traceback is printed, or the end differs by a byte
from that of an undisturbed command. A seed gives the same commands, faults and moments; --round N repeats one round.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
from chaos import run_chaos
from processes import print_status, write_json

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.demo import MODEL, load_pairs

SETTLED, MOST_GROWTH = 200, 1.05


def mixed_rows(count: int) -> list[dict[str, str]]:
    """The bundled pairs with prompts of one to eight questions."""
    rng, rows = random.Random(0), load_pairs("train")
    return [
        {**rng.choice(rows), "prompt": " ".join(r["prompt"] for r in rng.sample(rows, rng.randint(1, 8)))}
        for _ in range(count)
    ]


def resident() -> int:
    """Bytes of the process in memory."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class MemoryWatch(Listener):
    """Reads memory after every tenth step."""

    def __init__(self) -> None:
        self.peaks: dict[str, list[float]] = {}
        self.began = time.monotonic()

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        if step % 10:
            return
        now = {
            "resident": resident(),
            "mlx": mx.get_active_memory() + mx.get_cache_memory(),
            "active": mx.get_active_memory(),
            "arrays": sum(isinstance(value, mx.array) for value in gc.get_objects()),
        }
        for name, value in now.items():
            early_and_late = self.peaks.setdefault(name, [0, 0])
            period = int(step > SETTLED)
            early_and_late[period] = max(early_and_late[period], value)
        if step % 100 == 0:
            text = "  ".join(
                f"{name} {value / 1e6:.1f} MB" if value > 1e5 else f"{name} {value}" for name, value in now.items()
            )
            print(f"step {step}  {time.monotonic() - self.began:.0f} s  {text}", flush=True)


def measure_memory(steps: int, out: Path | None) -> bool:
    """Train, and compare memory with its early peak. Returns whether it stayed flat."""
    watch = MemoryWatch()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(model=str(MODEL), adapter_path=folder, iters=steps, batch_size=1, save_every=500)
        train(config.replace(steps_per_eval=500, learning_rate=1e-5), rows=mixed_rows(2000), listener=watch)
    growth = {name: late / early for name, (early, late) in watch.peaks.items()}
    print("peak after the first", SETTLED, "steps, of the peak in them:", {k: round(v, 3) for k, v in growth.items()})
    if out:
        out.write_text(json.dumps({"steps": steps, "peaks": watch.peaks, "growth": growth}, indent=1) + "\n")
    return all(value <= MOST_GROWTH for value in growth.values())


def disturb_commands(arguments: argparse.Namespace) -> bool:
    """Run rounds of disturbed commands, and print what was done. Returns whether nothing was wrong."""
    result = run_chaos(arguments.minutes, arguments.seed, arguments.round)
    if arguments.json:
        print(json.dumps(result))
    else:
        for title in ("rounds", "faults", "exits"):
            print(f"{title}: {sum(result[title].values())}")
            for name, count in result[title].items():
                print(f"  {name:34} {count:5}")
        print(f"{result['commands']} commands in {result['minutes']} minutes, {len(result['failures'])} failures")
    if arguments.out:
        write_json(arguments.out, result)
    for failure in result["failures"]:
        print_status(f"FAILED {failure}")
    return not result["failures"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--chaos", action="store_true")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    is_right = disturb_commands(arguments) if arguments.chaos else measure_memory(arguments.steps, arguments.out)
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
