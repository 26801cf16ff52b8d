"""Makes the run folders beside this file, with the version of mlx-dpo whose files must stay readable.

They were made at commit 71022aa, in a checkout of it:

    PYTHONPATH=$PWD LD_PRELOAD=/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3 OPENBLAS_NUM_THREADS=1 \
        python /path/to/tests/compatibility/make_runs.py

Only the command line of mlx-dpo and plain mlx-lm are used here, so that the script runs with any version.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHARED = ("--model", "model", "--data", "pairs", "--num-layers", 2, "--rank", 2, "--batch-size", 4, "--samples", 2)
RATE = ("--learning-rate", "1e-3")
FINISHED = (
    "train",
    *SHARED,
    *RATE,
    "--iters",
    4,
    "--steps-per-eval",
    2,
    "--save-every",
    4,
    "--adapter-path",
    "finished",
)
FUSE_BITS = ("train", *SHARED, *RATE, "--iters", 2, "--fuse-bits", 4, "--samples", 0, "--adapter-path", "fuse-bits")
# Dropout, a loss with state of its own, and the best checkpoint: all that a checkpoint has to keep.
INTERRUPTED = (
    *("train", *SHARED, *RATE, "--dropout", 0.1, "--loss", "bco_pair=0.5,beta_dpo=0.5", "--iters", 10),
    *("--steps-per-eval", 2, "--save-every", 2, "--steps-per-report", 3, "--keep-checkpoints", 2, "--keep-best"),
    *("--adapter-path", "interrupted"),
)
RESUME = ("train", "--resume", "--adapter-path", "interrupted", "--samples", 2)
REPORTS = {
    "evaluate": ("evaluate", "--model", "model", "--data", "pairs/valid.jsonl", "--adapter-path", "finished"),
    "evaluate fuse-bits": (
        "evaluate",
        "--model",
        "model",
        "--data",
        "pairs/valid.jsonl",
        "--adapter-path",
        "fuse-bits",
    ),
    "report": ("report", "finished"),
    "fuse": ("fuse", "--adapter-path", "finished", "--save-path", "fused", "--bits", 8),
    "export": ("export", "--format", "peft", "--adapter-path", "finished", "peft"),
    "score": (
        "score",
        "--model",
        "model",
        "--adapter-path",
        "finished",
        "--data",
        "answers.jsonl",
        "--output",
        "scores.jsonl",
    ),
    "plan": ("plan", "--model", "model", "--data", "pairs"),
    "data check": ("data", "check", "pairs/train.jsonl", "--model", "model"),
    "push": ("push", "finished", "--repo-id", "user/name", "--dry-run"),
    "cache": ("cache",),
}
NOT_KEPT = ("curves.png", "report.html", ".lock")  # large, and made again from the rest


def prepare(folder: Path, demo: Path) -> None:
    """Put the bundled model, a few of its pairs, and rows to score into `folder`."""
    shutil.copytree(demo / "model", folder / "model")
    (folder / "pairs").mkdir()
    for name, count in (("train", 24), ("valid", 8)):
        lines = (demo / "pairs" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        (folder / "pairs" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    pairs = map(json.loads, lines)
    rows = [{"prompt": p["prompt"], "completions": [p["chosen"], p["rejected"]], "scores": [2, 1]} for p in pairs]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def machine(model: Path) -> dict[str, Any]:
    """Versions, the device, and sums over logits and a gradient of `model` by plain mlx-lm.

    Equal where the bytes of a run can be expected to be equal, and where a checkpoint's provenance is.
    """
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm import load

    result: dict[str, Any] = {name: version(name) for name in ("mlx", "mlx-lm", "mlx-dpo")}
    result["device"] = mx.device_info().get("device_name", "")
    network = load(str(model))[0]
    norm = network.model.norm

    def loss(weight: Any, tokens: Any) -> Any:
        norm.weight = weight
        return nn.losses.cross_entropy(network(tokens), tokens, reduction="sum")

    for length in (7, 23, 64):
        tokens = mx.arange(3, 3 + 2 * length).reshape(2, length)
        value, gradient = mx.value_and_grad(loss)(norm.weight, tokens)
        result[f"loss of {length} tokens"] = value.item()
        result[f"gradient of {length} tokens"] = mx.abs(gradient).sum().item()
    return result


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mlx_dpo", *map(str, arguments)]


def run(folder: Path, *arguments: object) -> str:
    return subprocess.run(command(*arguments), cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def interrupt(folder: Path) -> None:
    """Start the run and press Ctrl-C once step 4 is saved, which is between two reports."""
    process = subprocess.Popen(command(*INTERRUPTED), cwd=folder)
    while not (folder / "interrupted" / "checkpoints" / "0000004").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


def main() -> None:
    import mlx_dpo

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, Path(mlx_dpo.__file__).parent / "demo")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        run(folder, *FINISHED)
        run(folder, *FUSE_BITS)
        interrupt(folder)
        kept = HERE / "runs"
        shutil.rmtree(kept, ignore_errors=True)
        for name in ("finished", "fuse-bits", "interrupted"):
            shutil.copytree(folder / name, kept / name, ignore=shutil.ignore_patterns(*NOT_KEPT))
        shutil.rmtree(kept / "fuse-bits" / "checkpoints")
        run(folder, *RESUME)
        shutil.copy(folder / "interrupted" / "adapters.safetensors", kept / "resumed.safetensors")
        outputs = {name: json.loads(run(folder, *arguments, "--json")) for name, arguments in REPORTS.items()}
        results = {
            "machine": machine(folder / "model"),
            "outputs": outputs,
            "scores": lines_of(folder / "scores.jsonl"),
            "resumed metrics": lines_of(folder / "interrupted" / "metrics.jsonl"),
        }
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
