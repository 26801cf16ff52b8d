"""What is in a model's folder, by the names of its files and its config.json; no weights are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tiktoken.model"}
_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")  # parts of the names of transformers' architectures


@dataclass(frozen=True)
class ModelContents:
    """What is in a model's folder.

    Attributes:
        config: the content of its config.json; empty if there is none that can be read.
        bytes: size of its files.
        missing: what is not there yet, in words; None if the model is complete.
        problem: why mlx-lm can't load it, by the kind of its files; None if it may.
    """

    config: Mapping[str, Any]
    bytes: int
    missing: str | None = None
    problem: str | None = None

    @property
    def model_type(self) -> str | None:
        """`model_type` in its config.json."""
        name = self.config.get("model_type")
        return name if isinstance(name, str) else None

    @property
    def bits(self) -> int | None:
        """Bits of its weights: of most quantized ones, or of their data type; None if the config does not say."""
        places = [self.config, self.config.get("text_config") or {}]
        for place in places:
            settings = place.get("quantization") or place.get("quantization_config") or {}
            if isinstance(bits := settings.get("bits"), int):
                return bits
            if match := re.search(r"fp(\d)", str(settings.get("quant_method"))):
                return int(match[1])
        names = (str(place.get(key)).removeprefix("torch.") for place in places for key in ("dtype", "torch_dtype"))
        return next((_BITS[name] for name in names if name in _BITS), None)

    @property
    def is_language_model(self) -> bool:
        """Whether it generates text, as far as that is known without mlx-lm's own code, which takes long to import."""
        names = [str(name) for name in self.config.get("architectures") or ()]
        return any(part in name for name in names for part in _LANGUAGE_MODELS) or self.model_type in _mlx_lm_types()


@cache
def _mlx_lm_types() -> frozenset[str]:
    """The model types that are modules of mlx-lm."""
    spec = find_spec("mlx_lm")
    folders = [Path(folder) / "models" for folder in (spec and spec.submodule_search_locations) or ()]
    return frozenset(file.stem for folder in folders for file in folder.glob("*.py"))


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has files of a model, of whatever kind."""
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf")) or any(folder.glob("*.safetensors"))


def read_contents(folder: Path) -> ModelContents:
    """Look at a model's folder. What can't be read counts as not being there.

    Args:
        folder: of a model, or a snapshot in the Hub cache, whose files are links.
    """
    sizes: dict[str, int] = {}
    with suppress(OSError):
        for file in sorted(folder.iterdir()):
            with suppress(OSError):  # a link whose target is gone
                if file.is_file():
                    sizes[file.name] = file.stat().st_size
    config = _read_json(folder / "config.json")
    problem = _problem(list(sizes), has_config=bool(config))
    missing = None if problem else _missing(folder, list(sizes))
    return ModelContents(config, sum(sizes.values()), missing, problem)


def _problem(names: Sequence[str], *, has_config: bool) -> str | None:
    suffixes = {Path(name).suffix for name in names}
    has_weights = any(name.startswith("model") and name.endswith(".safetensors") for name in names)
    if "adapter_config.json" in names and not has_weights:
        return "an adapter, not a model"
    if "model_index.json" in names:
        return "a pipeline of diffusers, not a language model"
    if ".gguf" in suffixes and not has_weights:
        return "GGUF, for llama.cpp; mlx-lm reads safetensors"
    if not has_config:
        return "no config.json that can be read"
    if suffixes & {".bin", ".pt", ".pth"} and not has_weights:
        return "weights of PyTorch (.bin); mlx-lm reads safetensors"
    return None


def _missing(folder: Path, names: Sequence[str]) -> str | None:
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    index = _read_json(folder / "model.safetensors.index.json").get("weight_map")
    expected = set(index.values()) if isinstance(index, dict) else set()
    count = len(expected) or max((int(shard[1]) for shard in shards), default=0)
    available = len(expected & set(names)) if expected else len(shards)
    if available < count:
        return f"{count - available} of {count} weight files"
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in names):
        return "all weights"
    return None if _TOKENIZER_FILES & set(names) else "the tokenizer"


def _read_json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}
