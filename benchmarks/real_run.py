"""Train a real model on real pairs as a user would, with the defaults: SFT on the chosen answers, then DPO at three
learning rates.

    python benchmarks/real_case.py DIR --pairs PAIRS.json
    python benchmarks/real_run.py RUNS --model DIR/model --pairs PAIRS.json [--held-out 30]

The last rows of the file are held out. Each command is printed; a run that has ended is not repeated, and one that was
interrupted is resumed, so that the hours this takes on a CPU need not be in one piece. The runs are left in
RUNS/sft, RUNS/sft-fused and RUNS/dpo-RATE, each with its report.html. docs/real-run.md is written from them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from processes import with_blas

from mlx_dpo.training.run_folder import RunFolder

RATES = ("1e-5", "5e-5", "2e-6")
MAX_LENGTH = ["--max-length", "256"]
COMMAND = [sys.executable, "-m", "mlx_dpo"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", required=True, type=Path)
    parser.add_argument("--held-out", type=int, default=30)
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    data = write_data(args.runs, args.pairs, args.model, args.held_out)
    train(args.runs / "sft", data, args.model, ["--loss", "sft", "--learning-rate", "5e-5"])
    fused = args.runs / "sft-fused"
    if not (fused / "config.json").exists():
        run("fuse", "--model", args.model, "--adapter-path", str(args.runs / "sft"), "--save-path", str(fused))
    for rate in RATES:
        train(args.runs / f"dpo-{rate}", data, str(fused), ["--learning-rate", rate])


def write_data(runs: Path, pairs: Path, model: str, held_out: int) -> Path:
    """Fix the rows for this model's chat template, and split them into a folder that `train` reads."""
    data = runs / "data"
    if (data / "valid.jsonl").exists():
        return data
    data.mkdir(exist_ok=True)
    run("data", "fix", str(pairs), str(data / "all.jsonl"), "--model", model)
    lines = (data / "all.jsonl").read_text().splitlines(keepends=True)
    (data / "all.jsonl").unlink()
    (data / "train.jsonl").write_text("".join(lines[:-held_out]))
    (data / "valid.jsonl").write_text("".join(lines[-held_out:]))
    return data


def train(folder: Path, data: Path, model: str, options: list[str]) -> None:
    """Train to the end, or resume. Does nothing if the run in the folder has ended."""
    checkpoints = RunFolder(folder)
    if checkpoints.latest_checkpoint() is None or checkpoints.unfinished_checkpoint() is not None:
        run("train", "--model", model, "--data", str(data), "--adapter-path", str(folder), *MAX_LENGTH, *options)


def run(*arguments: str) -> None:
    print("$ mlx-dpo", *arguments, flush=True)
    subprocess.run([*COMMAND, *arguments], check=True, env=with_blas())


if __name__ == "__main__":
    main()
