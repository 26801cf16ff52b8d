"""Which named models the recipes of examples/ can train on a Mac with 8, 16 and 32 GB, and by which settings.

    python benchmarks/recipe_memory.py [--out docs/benchmarks/recipe-memory.md] [--models NAME,...]

Estimated from each model's shape (`MODELS`) by `mlx-dpo plan --config-only`, not measured on a Mac: with the lengths of
the recipe's config.yaml and otherwise default settings. The memory is what a run plans with by default there: 70% of
what Metal recommends, and that is two thirds of a Mac's memory. Where a recipe does not fit, fewer trained layers are
tried, then shorter pairs.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from processes import print_status

from mlx_dpo import TrainConfig
from mlx_dpo.config_files import read_yaml
from mlx_dpo.forward.device import USABLE_SHARE
from mlx_dpo.training.config_planner import ConfigEstimate, estimate_from_config

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RECIPES = ("summarization", "dialogue", "style", "refusals")
MACS = (8, 16, 32)  # GiB
RECOMMENDED_SHARE = 2 / 3  # of a Mac's memory, that Metal recommends to use; more on Macs with over 36 GB
NUM_LAYERS = (-1, 16, 8)  # trained layers, in the order in which they are tried
LENGTHS = (512, 384, 256)  # tokens, tried after that
QUANTIZED = {"torch_dtype": "bfloat16", "quantization": {"bits": 4, "group_size": 64}}
QWEN3 = {
    **{"model_type": "qwen3", "rms_norm_eps": 1e-6, "vocab_size": 151936, "rope_theta": 1e6, "head_dim": 128},
    **{"num_key_value_heads": 8, "max_position_embeddings": 40960, "tie_word_embeddings": True, **QUANTIZED},
}
LLAMA3 = {
    **{"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 128256, "rope_theta": 5e5, "num_key_value_heads": 8},
    **{"max_position_embeddings": 131072, "tie_word_embeddings": True, **QUANTIZED},
}
GEMMA3 = {"model_type": "gemma3_text", "head_dim": 256, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256}


def shape(hidden: int, layers: int, intermediate: int, heads: int) -> dict[str, int]:
    """The keys of config.json that give a model's size."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    return dict(zip(names, (hidden, layers, intermediate, heads), strict=True))


MODELS: dict[str, dict[str, Any]] = {
    "mlx-community/Qwen3-0.6B-4bit": {**QWEN3, **shape(1024, 28, 3072, 16)},
    "mlx-community/gemma-3-1b-it-4bit": {
        **{**GEMMA3, **shape(1152, 26, 6912, 4), "num_key_value_heads": 1, "vocab_size": 262144},
        **{"sliding_window": 512, "sliding_window_pattern": 6, **QUANTIZED},
    },
    "mlx-community/Llama-3.2-1B-Instruct-4bit": {**LLAMA3, **shape(2048, 16, 8192, 32), "head_dim": 64},
    "mlx-community/Qwen3-1.7B-4bit": {**QWEN3, **shape(2048, 28, 6144, 16)},
    "mlx-community/Llama-3.2-3B-Instruct-4bit": {**LLAMA3, **shape(3072, 28, 8192, 24), "head_dim": 128},
    "mlx-community/gemma-3-4b-it-4bit": {  # its vision tower is not loaded
        "model_type": "gemma3",
        "vocab_size": 262208,
        "text_config": {
            **{**GEMMA3, **shape(2560, 34, 10240, 8), "num_key_value_heads": 4, "sliding_window": 1024},
            **{"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window_pattern": 6},
        },
        **QUANTIZED,
    },
    "mlx-community/Qwen3-4B-4bit": {**QWEN3, **shape(2560, 36, 9728, 32)},
    "mlx-community/Qwen3-8B-4bit": {**QWEN3, **shape(4096, 36, 12288, 32), "tie_word_embeddings": False},
}


def memory_of(gigabytes: int) -> int:
    """Bytes that a run on a Mac of this memory plans with."""
    return int(USABLE_SHARE * RECOMMENDED_SHARE * gigabytes * 2**30)


def max_lengths() -> dict[str, int]:
    """The longest pair of each recipe, in tokens, by its config.yaml."""
    return {name: int(read_yaml(EXAMPLES / name / "config.yaml")["max_length"]) for name in RECIPES}


@functools.cache
def estimate(name: str, gigabytes: int, num_layers: int) -> ConfigEstimate:
    """What a model takes at the lengths of all recipes, and at the shorter ones."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODELS[name]))
        settings = TrainConfig(model=folder, memory_limit=str(memory_of(gigabytes)), num_layers=num_layers)
        return estimate_from_config(settings, sorted({*max_lengths().values(), *LENGTHS}))


def settings_that_fit(name: str, gigabytes: int, max_length: int) -> str:
    """The first settings that fit, and their peak; a dash if none do."""
    tries = [(layers, max_length) for layers in NUM_LAYERS]
    tries += [(NUM_LAYERS[-1], length) for length in LENGTHS if length < max_length]
    for layers, length in tries:
        row = next(row for row in estimate(name, gigabytes, layers).lengths if row.tokens == length)
        if row.fits:
            options = [] if layers == -1 else [f"--num-layers {layers}"]
            options += [] if length == max_length else [f"--max-length {length}"]
            return f"{row.peak / 1e9:.1f} GB" + (f", `{' '.join(options)}`" if options else "")
    return "-"


def model_rows(name: str) -> dict[str, str]:
    """A model's row of each recipe's table."""
    print_status(name)
    weights = f"{estimate(name, MACS[0], NUM_LAYERS[0]).weights / 1e9:.2f} GB"
    rows = {}
    for recipe, length in max_lengths().items():
        cells = [settings_that_fit(name, gigabytes, length) for gigabytes in MACS]
        rows[recipe] = f"| `{name}` | {weights} | {' | '.join(cells)} |"
    return rows


def page(names: list[str]) -> str:
    """docs/benchmarks/recipe-memory.md."""
    rows = {name: model_rows(name) for name in names}
    limits = ", ".join(f"{memory_of(gigabytes) / 1e9:.1f} GB of {gigabytes}" for gigabytes in MACS)
    lines = [
        "# Memory of the recipes",
        "",
        "Made by `python benchmarks/recipe_memory.py --out docs/benchmarks/recipe-memory.md`: estimates by",
        "`mlx-dpo plan --config-only` of each model's shape, not measurements on a Mac. A cell has the peak of a",
        "step on the longest pair of the recipe, and the options it needs to fit. A run plans with 70% of the two",
        f"thirds that Metal recommends: {limits}. A dash: 8 trained layers and 256 tokens",
        "do not fit either. Adapters have rank 8; a larger batch takes no more memory.",
    ]
    for recipe, length in max_lengths().items():
        lines += ["", f"## {recipe.capitalize()}, up to {length:,} tokens", ""]
        lines += ["| model | weights | " + " | ".join(f"{gigabytes} GB" for gigabytes in MACS) + " |"]
        lines += ["| --- | --- |" + " --- |" * len(MACS), *(rows[name][recipe] for name in names)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write; default: print")
    parser.add_argument("--models", help="names of MODELS, separated by commas (default: all)")
    options = parser.parse_args()
    text = page(options.models.split(",") if options.models else list(MODELS))
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
