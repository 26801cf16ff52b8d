"""How many Macs over which link until communication takes a tenth of a step: on paper, from bytes that are measured.

    python benchmarks/machines.py [--out docs/benchmarks/machines.md]

Measured, on this machine: what a step of 2 and of 4 ranks sends over a ring (`bytes_sent`, which
tests/distributed/test_training.py holds against the system's own count), beside what the adapter's size predicts. On
paper: the same prediction for models of 1, 8 and 32 billion parameters, whose adapters are attached here without their
weights being made; the links' and the Macs' speeds are other people's figures, and stand in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from case import CaseShape, make_case

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.distributed.communicator import ring_all_reduce_bytes
from mlx_dpo.distributed.launcher import find_free_ports
from mlx_dpo.training.listener import Metrics, RunPlan

CASE = CaseShape(hidden=256, layers=4, vocab=4096, pairs=32, prompt_words=40, completion_words=20)
BATCH = 8
# A 9-billion-parameter model at 4 bits reads 1,054 tokens a second of a prompt on an M3 Ultra with 60 GPU cores
# (huggingface.co/allenai/tmax-9b, discussion 2): 2 operations a parameter and token.
SPEED = 2 * 9e9 * 1054
TOKENS = 550  # tokens of a pair that go through the model, its prompt once; as in the comparison with the peers
OPERATIONS = 4  # per parameter and token: forward, and backward to the layers' inputs; frozen weights get no gradient
SHARE = 0.1
GATHERS, SUMS = 6, 1  # collectives of a step: three gathers of a header and a body, and the gradients


@dataclass(frozen=True)
class Link:
    """Bytes a second, and seconds until a message arrives."""

    name: str
    bandwidth: float
    latency: float


# Ethernet at its nominal rate less framing. Thunderbolt 5 with RDMA: 3.5 GB/s by jaccl (ml-explore/mlx#3207), under 50
# microseconds where TCP takes some 300 (Apple's TN3205, as reported).
LINKS = (
    Link("1 Gbit/s Ethernet", 0.117e9, 300e-6),
    Link("10 Gbit/s Ethernet", 1.17e9, 300e-6),
    Link("Thunderbolt 5, jaccl", 3.5e9, 50e-6),
)
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 128256}
MODELS: dict[str, dict[str, Any]] = {
    "Llama 3.2 1B": {
        **LLAMA,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "Llama 3.1 8B": {
        **LLAMA,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "Qwen3 32B": {
        "model_type": "qwen3",
        "rms_norm_eps": 1e-6,
        "vocab_size": 151936,
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "intermediate_size": 25600,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
}


class BytesSentListener(Listener):
    """Prints the bytes sent per step, measured and predicted."""

    def on_run_start(self, plan: RunPlan) -> None:
        self.predicted = plan.gradient_bytes

    def on_metrics(self, metrics: Metrics) -> None:
        self.sent = metrics["bytes_sent"]

    def on_run_end(self) -> None:
        print(json.dumps({"predicted": self.predicted, "sent": self.sent}))


def train_as_rank(case: Path) -> None:
    """Train for a few steps as one of several ranks."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model=str(case / "model"),
            data=str(case / "data" / "train.jsonl"),
            adapter_path=str(Path(folder) / "run"),
            batch_size=BATCH,
            iters=4,
            valid_pairs=0,
            save_every=0,
        )
        train(config, listener=BytesSentListener())


def measured(case: Path, size: int) -> dict[str, float]:
    """The bytes that each of `size` ranks sends per step."""
    port, ranks = find_free_ports(size), []
    hosts = case / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port + i}"] for i in range(size)]))
    for rank in range(size):
        environment = {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "XDG_CACHE_HOME": str(case)}
        command = [sys.executable, __file__, "--rank-of", str(case)]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    (first, *_) = [rank.communicate()[0] for rank in ranks]
    return json.loads(first.splitlines()[-1])  # type: ignore[no-any-return]


def sizes(config: dict[str, Any]) -> tuple[int, list[mx.array]]:
    """A model's parameters, and the tensors of its adapter at the default rank; nothing is evaluated."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    count = sum(array.size for _, array in tree_flatten(model.parameters()))
    defaults = TrainConfig()
    attach_adapter(model, AdapterSpec("lora", num_layers=-1, rank=defaults.rank, scale=defaults.scale))
    return count, list(trainable_tensors(model).values())


def communication(link: Link, macs: int, adapter: list[mx.array]) -> float:
    """Seconds of a step; a gathering passes a part on size - 1 times, a sum twice that."""
    hops = (macs - 1) * (GATHERS + 2 * SUMS)
    return hops * link.latency + ring_all_reduce_bytes(macs, adapter) / link.bandwidth


def most_macs(link: Link, pairs: int, parameters: int, adapter: list[mx.array]) -> int:
    """The most Macs that a batch of so many pairs keeps busy, nine tenths of their time."""
    seconds_per_pair = OPERATIONS * parameters * TOKENS / SPEED

    def is_efficient(macs: int) -> bool:
        waiting = communication(link, macs, adapter)
        return waiting <= SHARE * (waiting + seconds_per_pair * pairs / macs)

    return max((macs for macs in range(2, pairs + 1) if is_efficient(macs)), default=1)


def page(measurements: dict[int, dict[str, float]]) -> str:
    """docs/benchmarks/machines.md."""
    lines = [
        "# How many machines",
        "",
        "Made by `python benchmarks/machines.py --out docs/benchmarks/machines.md`.",
        "",
        f"Measured on 127.0.0.1, {CASE.layers} layers of hidden {CASE.hidden}, {BATCH} pairs per step, float32:",
        "",
        "| ranks | gradients a rank sends a step, predicted | all it sends, measured |",
        "| --- | --- | --- |",
    ]
    for size, sent in measurements.items():
        lines.append(f"| {size} | {sent['predicted']:,} bytes | {sent['sent']:,.0f} bytes |")
    lines += [
        "",
        "The rest are the pairs' metrics and reference log-probs, some kilobytes whatever the model.",
        "",
        "On paper: the most Macs on which communication takes a tenth of a step at most. A batch of so many pairs is "
        f"split between them; a pair is {TOKENS} tokens, its prompt once, and costs {OPERATIONS} operations per "
        f"parameter and token. A Mac is taken to do {SPEED / 1e12:.0f} million million of them a second: a 60-core "
        "M3 Ultra reading a prompt, as reported for a 9B model at 4 bits. Links: "
        + "; ".join(f"{link.name} {link.bandwidth / 1e9:.3g} GB/s, {link.latency * 1e6:.0f} µs" for link in LINKS)
        + ". These are other people's figures: no Mac was at hand.",
        "",
        "| model | adapter | seconds per pair | pairs per step | " + " | ".join(link.name for link in LINKS) + " |",
        "| --- | --- | --- | --- | " + " | ".join("---" for _ in LINKS) + " |",
    ]
    for name, config in MODELS.items():
        parameters, adapter = sizes(config)
        megabytes = sum(array.nbytes for array in adapter) / 1e6
        for pairs in (8, 32):
            macs = [most_macs(link, pairs, parameters, adapter) for link in LINKS]
            cells = [
                name,
                f"{megabytes:.0f} MB",
                f"{OPERATIONS * parameters * TOKENS / SPEED:.2f}",
                str(pairs),
                *map(str, macs),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "1 means that not even two are worth it by this measure. A larger `--batch-size` is what makes room for more: "
        "gradients are sent once a step, however many pairs it has.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        train_as_rank(options.rank_of)
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        make_case(Path(folder), CASE)
        text = page({size: measured(Path(folder), size) for size in (2, 4)})
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
