"""PEFT's files, and the names of layers in transformers.

mlx-lm computes W x + scale (x A) B with A [inputs, rank] and B [rank, outputs], one rank and one scale for all layers.
PEFT stores both transposed, and its scale is lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023,
arXiv 2312.03732); rank_pattern and alpha_pattern make them vary by layer. DoRA (Liu et al. 2024, arXiv 2402.09353) is
the same in both: rows of W + scale (A B)^T scaled to a learned magnitude.
"""

from __future__ import annotations

from pathlib import Path

from mlx_dpo.errors import UserError, Where
from mlx_dpo.forward.model_loading import LoadedModel
from mlx_dpo.utils.json_files import read_json

PEFT_CONFIG_FILE, PEFT_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
PEFT_REWARD_HEAD, PEFT_CLASSIFIER = "score", "SEQ_CLS"  # transformers' name of a classifier's head, and its task

# Model types whose linear layers have the same names in mlx-lm and in transformers; tests/export/test_peft_live.py
# compares the logits of each with PEFT's.
# fmt: off
SAME_LAYER_NAMES = frozenset({
    "cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "helium", "llama", "mistral",
    "mixtral", "olmo2", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
})
# fmt: on
# Those of which transformers has no sequence classifier, or one with other names of layers.
WITHOUT_CLASSIFIER = frozenset({"cohere", "cohere2", "ernie4_5", "granite", "qwen3_5"})
# transformers' prefix of the text model's layers, for model types where mlx-lm's is TEXT_LAYERS_PREFIX.
TRANSFORMERS_PREFIXES = {"gemma3": "model.language_model.", "qwen3_5": "model."}
TEXT_LAYERS_PREFIX = "language_model.model."


def transformers_layer_name(model_type: str, name: str) -> str:
    """The name in transformers of mlx-lm's linear layer `name` in a model of this type."""
    if model_type not in TRANSFORMERS_PREFIXES:
        return name
    if name.startswith(TEXT_LAYERS_PREFIX):
        return TRANSFORMERS_PREFIXES[model_type] + name.removeprefix(TEXT_LAYERS_PREFIX)
    return name.removeprefix("language_model.")


def require_supported_model_type(loaded: LoadedModel) -> str:
    """Return the model's type.

    Raises:
        UserError: the names of its layers in transformers are not known.
    """
    model_type = loaded.config["model_type"]
    if model_type not in SAME_LAYER_NAMES and model_type not in TRANSFORMERS_PREFIXES:
        raise UserError(
            f"the names of layers in transformers are not known for models of type {model_type!r}",
            where=Where(str(loaded.path)),
            hint=f"Supported types: {', '.join(sorted(SAME_LAYER_NAMES | TRANSFORMERS_PREFIXES.keys()))}.",
        )
    return model_type


def is_peft_reward_model(folder: str | Path) -> bool:
    """Whether a PEFT adapter's folder holds a sequence classifier, as `export_peft` writes of a reward model."""
    return bool(read_json(Path(folder) / PEFT_CONFIG_FILE).get("task_type") == PEFT_CLASSIFIER)
