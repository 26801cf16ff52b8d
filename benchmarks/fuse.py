"""How much of the margin a fused model keeps, by bits: trained plainly, and trained to be fused.

    python benchmarks/fuse.py [--rates 2e-4,2e-5] [--out docs/benchmarks/fuse.md]

Trains the bundled model three times a rate, and loads every fused model with plain mlx_lm. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm

from mlx_dpo import TrainConfig, evaluate, train
from mlx_dpo.demo import MODEL, PAIRS
from mlx_dpo.demo.demo_run import demo_config
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
from mlx_dpo.forward import lora_products as lora

ABOUT = """# How much of the margin a fused model keeps

Made by `python benchmarks/fuse.py --out docs/benchmarks/fuse.md`: the bundled 4-bit model, trained with the demo's
settings on the bundled training pairs, less 64 that are set aside; `fuse --bits auto` chooses on those 64. Every fused
model is loaded with plain `mlx_lm.load` and measured on the 128 held-out pairs, which nothing was chosen by. `kept` is
the share of the margin of the plainly trained adapter, unfused. Sizes are of all tensors, against the base's.

An update is small against the weights it changes, and rounding to the base's bits makes an error of its own: the
smaller the update, the more of it drowns. Straight-through rounding in training (the weights rounded in the forward
pass as mlx-lm's fuse will round them, the gradient passed to the adapter unchanged) finds its way around that error
only where updates are as large as the error. `--fuse-bits` trains adapters that move the offsets of the base's own
groups, which is no rounding at all, so it keeps its margin at any size of update.

`auto` wants 95% by two standard errors on the pairs it chooses on; on other pairs, as here, it can fall a little short.
"""
HEAD = "| trained | fused | bits | size | margin | kept |\n| --- | --- | --- | --- | --- | --- |\n"


@contextmanager
def straight_through() -> Iterator[None]:
    """In this context, LoRA layers compute with weights that are rounded as mlx-lm's fuse rounds them."""
    plain = lora._in_one_product

    def rounded(self: Any, x: mx.array) -> mx.array:
        layer = self.linear
        quantization = {"group_size": layer.group_size, "bits": layer.bits}
        whole = mx.dequantize(layer.weight, layer.scales, layer.biases, **quantization)
        whole = whole + self.scale * (self.lora_a @ self.lora_b).T
        weight = mx.stop_gradient(mx.dequantize(*mx.quantize(whole, **quantization), **quantization))
        through = self.scale * (mx.stop_gradient(x) @ self.lora_a) @ self.lora_b
        return x @ weight.T + through - mx.stop_gradient(through)

    lora._in_one_product = rounded
    try:
        yield
    finally:
        lora._in_one_product = plain


class LearningRateSection:
    """The table rows of one learning rate."""

    def __init__(self, folder: Path, rate: float) -> None:
        self.folder = folder
        self.config = demo_config("").replace(
            data=str(PAIRS / "train.jsonl"), learning_rate=rate, steps_per_eval=0, steps_per_report=1000
        )
        self.adapter = 0.0

    def train(self, name: str, **settings: Any) -> Path:
        """Train an adapter. Returns its folder."""
        return train(self.config.replace(adapter_path=str(self.folder / name), **settings)).run

    def row(self, trained: str, fused: str, bits: str, model: Path | str, adapter: Path | None = None) -> str:
        """A row of the table: a model loaded by mlx_lm, measured on the held-out pairs."""
        loaded, tokenizer = mlx_lm.load(str(model), adapter_path=None if adapter is None else str(adapter))
        config: TrainConfig = self.config.replace(data=str(PAIRS), reference=str(MODEL))
        margin = evaluate(config, model=loaded, tokenizer=tokenizer)["rewards/margins"]
        self.adapter = self.adapter or margin
        size = "-" if adapter else f"{weights(Path(model)) / weights(MODEL):.2f}"
        return f"| {trained} | {fused} | {bits} | {size} | {margin:.3f} | {margin / self.adapter:.0%} |\n"

    def rows(self) -> Iterator[str]:
        """All rows, in order."""
        run = self.train("plain")
        unfused = self.row("plainly", "not", "-", MODEL, run)
        yield self.row("plainly", "by mlx-lm", "4", by_mlx_lm(run))
        yield unfused
        for bits in ("5", "6", "8", "none"):
            yield self.fused("plainly", run, bits)
        yield self.fused("plainly", run, "auto")
        with straight_through():
            rounded = self.train("straight-through")
        yield self.row("straight-through", "by mlx-lm", "4", by_mlx_lm(rounded))
        aware = self.train("aware", fuse_bits=4)
        yield self.fused("`--fuse-bits 4`", aware, "auto")

    def fused(self, trained: str, run: Path, bits: Any) -> str:
        """The row of a model that this project fused."""
        into = self.folder / f"{run.name}-{bits}"
        done = fuse_adapter(str(MODEL), run, into, bits=bits, force=True)
        return self.row(trained, f"`--bits {bits}`", done.fused_model.bits, into)


def by_mlx_lm(run: Path) -> Path:
    """Fuse with mlx-lm. Returns the model's folder."""
    into = run.with_name(f"{run.name}-mlx-lm")
    flags = ("--model", MODEL, "--adapter-path", run, "--save-path", into)
    subprocess.run([sys.executable, "-m", "mlx_lm", "fuse", *map(str, flags)], check=True, capture_output=True)
    return into


def weights(folder: Path) -> int:
    """Bytes of a model's tensors."""
    return sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in mx.load(str(file)).values())


def lines(rates: list[float]) -> Iterator[str]:
    """The page, piece by piece."""
    yield ABOUT
    for rate in rates:
        yield f"\n## At `--learning-rate {rate:g}`\n\n{HEAD}"
        with tempfile.TemporaryDirectory() as folder:
            yield from LearningRateSection(Path(folder), rate).rows()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="2e-4,2e-5", help="learning rates, separated by commas")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    arguments = parser.parse_args()
    page = ""
    for line in lines([float(rate) for rate in arguments.rates.split(",")]):
        print(line, end="", flush=True)
        page += line
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
