"""How soon training starts on a very large file, and how much memory Python takes for it.

    python benchmarks/streaming.py [--rows 1000000] [--bytes-a-row 2000] [--iters 5]

Makes a JSONL file of that size (2 GB by default), trains the tests' tiny model on it in a process of its own, and
prints one JSON object: seconds from the start of reading to the first step, and the process's peak memory above that of
the same training on eight rows.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKPOINT = Path(__file__).parent.parent / "tests" / "trl" / "checkpoint"
CHILD = """
import json, resource, sys, time
from mlx_dpo import Listener, TrainConfig, train

class FirstStep(Listener):
    seconds = None
    def on_step(self, step, metrics):
        self.seconds = self.seconds or time.perf_counter() - began

first = FirstStep()
model, data, run, iters = sys.argv[1:]
config = TrainConfig(model=model, data=data, adapter_path=run, iters=int(iters), max_length=256, valid_pairs=8)
began = time.perf_counter()
train(config, listener=first)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"first_step_seconds": first.seconds, "peak_bytes": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("rows", 1_000_000), ("bytes-a-row", 2000), ("iters", 5)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.jsonl", Path(folder) / "large.jsonl"
        write(small, 8, options.bytes_a_row)
        write(large, options.rows, options.bytes_a_row)
        base = measure(small, Path(folder) / "a", options.iters)
        full = measure(large, Path(folder) / "b", options.iters)
        result = {
            "rows": options.rows,
            "file_mb": round(large.stat().st_size / 1e6),
            "first_step_seconds": round(full["first_step_seconds"], 1),
            "of_which_model_and_step": round(base["first_step_seconds"], 1),
            "memory_above_eight_rows_mb": round((full["peak_bytes"] - base["peak_bytes"]) / 1e6),
        }
        print(json.dumps(result))


def write(file: Path, rows: int, size: int) -> None:
    """Rows of about `size` bytes, no two alike."""
    words = [f"word{i}" for i in range(1000)]
    text = " ".join(random.Random(0).choices(words, k=20_000))
    rng = random.Random(1)
    third = size // 3
    with file.open("w") as f:
        for i in range(rows):
            start = rng.randrange(len(text) - size)
            prompt, chosen, rejected = (text[start + j * third : start + (j + 1) * third] for j in range(3))
            f.write(json.dumps({"prompt": f"{i} {prompt}", "chosen": chosen, "rejected": rejected}) + "\n")


def measure(data: Path, run: Path, iters: int) -> dict[str, float]:
    """One training in its own process."""
    began = time.perf_counter()
    command = [sys.executable, "-c", CHILD, CHECKPOINT, data, run, iters]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    print(f"{data.name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
