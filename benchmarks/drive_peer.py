"""Train with a peer on a case and print its figures as JSON; peers.py calls it in the peers' environment.

    .cache/peers/bin/python benchmarks/drive_peer.py mlx-lm-lora|mlx-tune CASE [--batch-size 4] [--steps 6]

Both run their own loops, unchanged, on the first `batch-size * steps` pairs of the case, with LoRA of rank 8 and scale
20 on all linear layers and beta 0.1. Replaced by stubs: off the Mac, limits that only Metal reports, for
mlx-lm-lora; the packages of mlx-tune's speech and vision parts, which are imported and not used.
"""

from __future__ import annotations

import argparse
import builtins
import importlib.machinery
import json
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from processes import resident_peak

RANK, SCALE, RATE, LENGTH, NEVER = 8, 20.0, 1e-5, 2048, 10**6
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UNUSED = ("mlx_embeddings", "mlx_vlm", "mlx_audio", "soundfile", "librosa", "cv2", "PIL")
Row = dict[str, str]


@dataclass(frozen=True)
class PeerTiming:
    """Timing of a training.

    Attributes:
        stamps: the times of the start and of the end of each step, in seconds.
        reference: seconds the reference took before the first step.
        trained: number of trained parameters, which must equal ours.
    """

    stamps: list[float]
    reference: float
    trained: int


def mlx_lm_lora(case: Path, rows: list[Row], batch_size: int, steps: int, out: Path) -> PeerTiming:
    """The reference is a second model, measured in every step."""
    if not mx.metal.is_available():
        stub_metal_limits()
    from mlx.optimizers import AdamW
    from mlx_lm import load
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm_lora.trainer import dpo_trainer
    from mlx_lm_lora.trainer.datasets import DPODataset

    (model, tokenizer), (reference, _) = load(str(case / "model")), load(str(case / "model"))
    model.freeze()
    reference.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": RANK, "scale": SCALE, "dropout": 0.0})
    arguments = dpo_trainer.DPOTrainingArgs(
        batch_size=batch_size,
        iters=steps,
        max_seq_length=LENGTH,
        steps_per_report=1,
        steps_per_save=NEVER,
        steps_per_eval=NEVER,
        adapter_file=str(out / "adapters.safetensors"),
    )
    data, stamps = DPODataset(rows, tokenizer), []

    class Clock:
        def on_train_loss_report(self, _: Any) -> None:
            stamps.append(time.perf_counter())

        def on_val_loss_report(self, _: Any) -> None:
            pass

    np.random.seed(0)  # it draws its batches from numpy
    mx.reset_peak_memory()
    stamps.append(time.perf_counter())
    dpo_trainer.train_dpo(model, reference, AdamW(learning_rate=RATE), data, None, arguments, training_callback=Clock())
    return PeerTiming(stamps, 0.0, trained_parameters(model))


def stub_metal_limits() -> None:
    """Give mlx-lm-lora the device limit it asks for, and let it set one."""
    info = mx.device_info
    mx.device_info = lambda *_: {**info(), "max_recommended_working_set_size": 8 << 30}
    mx.set_wired_limit = lambda *_: 0


def mlx_tune(case: Path, rows: list[Row], batch_size: int, steps: int, out: Path) -> PeerTiming:
    """At batch 1 it shares prompts. Its loop reports by print only, so print is replaced to record the times."""
    sys.meta_path.append(EmptyModuleFinder())
    from mlx_tune import FastLanguageModel, rl_trainers

    model, tokenizer = FastLanguageModel.from_pretrained(str(case / "model"), max_seq_length=LENGTH)
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=RANK * SCALE, target_modules=LINEAR, use_gradient_checkpointing=False
    )
    arguments = rl_trainers.DPOConfig(
        beta=0.1,
        learning_rate=RATE,
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        max_seq_length=LENGTH,
        logging_steps=1,
        save_steps=NEVER,
        output_dir=str(out),
    )
    texts = [templated(row, tokenizer) for row in rows]
    trainer = rl_trainers.DPOTrainer(model, train_dataset=texts, tokenizer=tokenizer, args=arguments)
    stamps, reference = [], []

    def record(*values: Any, **_: Any) -> None:
        text, now = " ".join(map(str, values)), time.perf_counter()
        if "Pre-computing reference" in text or "log-probs cached" in text:
            reference.append(now)
        if "Starting training for" in text or "Step " in text:
            stamps.append(now)
        builtins.print(*values, file=sys.stderr)

    rl_trainers.print = record
    mx.reset_peak_memory()
    trainer.train()
    start, end = reference
    return PeerTiming(stamps, end - start, trained_parameters(trainer.model.model))


def trained_parameters(model: Any) -> int:
    """The number of trainable parameters."""
    return sum(value.size for _, value in tree_flatten(model.trainable_parameters()))


def templated(row: Row, tokenizer: Any) -> Row:
    """A row rendered with the chat template, which mlx-tune does not apply."""
    messages = [{"role": "user", "content": row["prompt"]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return {"prompt": prompt, **{name: row[name] + tokenizer.eos_token + "\n" for name in ("chosen", "rejected")}}


class EmptyModuleFinder:
    """Imports empty modules in place of packages that are imported and not used."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        is_unused = name.split(".")[0] in UNUSED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_unused else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = self.attribute
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""

    @staticmethod
    def attribute(name: str) -> type:
        """Any name is an empty class."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def drive(options: argparse.Namespace) -> dict[str, object]:
    """Train. Returns the seconds of each step and the peak memory."""
    lines = (options.case / "data" / "train.jsonl").read_text().splitlines()[: options.batch_size * options.steps]
    rows = [json.loads(line) for line in lines]
    peer = {"mlx-lm-lora": mlx_lm_lora, "mlx-tune": mlx_tune}[options.peer]
    with tempfile.TemporaryDirectory() as folder:
        driven = peer(options.case, rows, options.batch_size, options.steps, Path(folder))
    seconds = [round(b - a, 4) for a, b in pairwise(driven.stamps)]
    if len(seconds) != options.steps:
        raise RuntimeError(f"{options.peer} reported {len(seconds)} steps, not {options.steps}")
    return {
        "pairs": len(rows),
        "first_epoch": seconds,
        "later_epochs": [],  # its steps cost the same in every epoch
        "reference_seconds": round(driven.reference, 4),
        "trained_parameters": driven.trained,
        "peak_mb": round(mx.get_peak_memory() / 1e6, 1),
        "resident_peak_mb": resident_peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["mlx-lm-lora", "mlx-tune"])
    parser.add_argument("case", type=Path)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    stdout, sys.stdout = sys.stdout, sys.stderr
    result = drive(options)
    print(json.dumps(result), file=stdout)


if __name__ == "__main__":
    main()
