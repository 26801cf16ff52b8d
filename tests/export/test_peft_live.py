"""Adapters against PEFT in transformers itself, both ways; runs where torch and peft are installed.

.venv/bin/pip install -e '.[test-peft]' && .venv/bin/python -m pytest -m peft
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest

from mlx_dpo import TrainConfig, train
from mlx_dpo.adapters.adapter_folder import REWARD_HEAD_FILE
from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.errors import UserError
from mlx_dpo.export.peft.peft_export import export_peft
from mlx_dpo.export.peft.peft_format import SAME_LAYER_NAMES, TRANSFORMERS_PREFIXES, WITHOUT_CLASSIFIER
from mlx_dpo.export.peft.peft_import import import_peft
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.reward_model import RewardModel
from mlx_dpo.forward.reward_network import count_hidden, load_reward_network, require_head_split
from mlx_dpo.training.run_folder import RunFolder
from tests.conftest import CHECKPOINT, PAIRS, rows_of
from tests.forward.families import COMMON, CONFIGS

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peft

IDS = [[5, 77, 9, 300, 41, 8, 120, 3]]
TIED = {"tie_word_embeddings": True}
EXPERTS = ("mixtral", "qwen3_moe")  # whose feed-forward layers PEFT can't hold
ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")
OWN: dict[str, dict[str, Any]] = {  # where the shared tiny config is read otherwise by transformers
    "cohere": TIED,
    "cohere2": TIED,
    "gemma": TIED,
    "gemma2": TIED,
    "gemma3": {
        "text_config": {**CONFIGS["gemma3"]["text_config"], **TIED, "query_pre_attn_scalar": 256, "pad_token_id": 0},
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "vocab_size": 320,
    },
    "llama": {"layer_types": None},
    "mistral": {"sliding_window": None},
    "phi": {"partial_rotary_factor": 0.5, "hidden_act": "gelu_new"},
    "starcoder2": TIED | {"hidden_act": "gelu", "use_bias": True, "norm_epsilon": 1e-5, "sliding_window": None},
}


def make_base(folder: Path, kind: str) -> Path:
    """A random float32 model of transformers', in a folder that mlx-lm reads."""
    config = {**COMMON, **CONFIGS.get(kind, {}), **OWN.get(kind, {}), "pad_token_id": 0, "eos_token_id": 2}
    config.pop("model_type", None)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **config))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.float().save_pretrained(folder)
    theirs = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**theirs, **config, "model_type": kind}))
    return folder


def logits_of_mlx_lm(folder: Path, adapter: Path | None = None) -> np.ndarray:
    model, _ = mlx_lm.utils.load_model(folder)
    if adapter:
        model = mlx_lm.utils.load_adapters(model, str(adapter))
    return np.array(model(mx.array(IDS)))


def logits_of_peft(folder: Path, adapter: Path | None = None) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return np.asarray(model(torch.tensor(IDS)).logits)


def make_run(base: Path, folder: Path, **spec: Any) -> Path:
    """A run's adapter with nothing left at its first values."""
    model = load_model(str(base)).model
    attached = attach_adapter(
        model, AdapterSpec(**{"fine_tune_type": "lora", "num_layers": -1, "rank": 4, "scale": 1.5} | spec)
    )
    mx.random.seed(2)
    tensors = {
        name: v * (1 + 0.2 * mx.random.normal(v.shape)) if name.endswith(".m") else 0.1 * mx.random.normal(v.shape)
        for name, v in trainable_tensors(model).items()
    }
    folder.mkdir()
    RunFolder(folder).save_adapter(tensors, attached, str(base))
    return folder


def make_peft(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter as PEFT writes it, with nothing left at its first values."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(3)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
        elif "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def tensors_of(file: Path) -> dict[str, bytes]:
    return {name: bytes(memoryview(np.array(v))) for name, v in mx.load(str(file)).items()}


@pytest.mark.parametrize("kind", sorted(SAME_LAYER_NAMES | TRANSFORMERS_PREFIXES.keys()))
def test_every_model_type(tmp_path: Path, kind: str) -> None:
    base = make_base(tmp_path / "base", kind)
    plain = logits_of_peft(base)
    np.testing.assert_allclose(logits_of_mlx_lm(base), plain, atol=1e-4)
    run = make_run(base, tmp_path / "run", keys=ATTENTION if kind in EXPERTS else None)
    export_peft(str(base), run, tmp_path / "exported")
    expected = logits_of_mlx_lm(base, run)
    assert np.abs(expected - plain).max() > 0.01
    np.testing.assert_allclose(logits_of_peft(base, tmp_path / "exported"), expected, atol=1e-4)


WAYS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear", "r": 4, "lora_alpha": 6},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "r": 5, "lora_alpha": 3, "use_rslora": True},
    "dora": {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "use_dora": True},
    "first_layer": {"target_modules": ["q_proj"], "layers_to_transform": [0], "r": 4},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "up_proj": 8},
        "alpha_pattern": {"up_proj": 16, "layers.0.self_attn.q_proj": 1},
    },
    "dora_patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "use_dora": True,
        "layers_to_transform": [1],
        "r": 4,
        "rank_pattern": {"v_proj": 2},
    },
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_both_ways(tmp_path: Path, options: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base", "qwen3")
    theirs = make_peft(base, tmp_path / "theirs", **options)
    expected = logits_of_peft(base, theirs)
    import_peft(theirs, tmp_path / "run")
    np.testing.assert_allclose(logits_of_mlx_lm(base, tmp_path / "run"), expected, atol=1e-4)
    export_peft(str(base), tmp_path / "run", tmp_path / "back")
    np.testing.assert_allclose(logits_of_peft(base, tmp_path / "back"), expected, atol=1e-4)
    weights = "adapter_model.safetensors"
    if "alpha_pattern" in options or "rank_pattern" in options:  # what B and a layer's own scale say together
        assert scaled(tmp_path / "back", base) == scaled(theirs, base)
    else:
        assert tensors_of(tmp_path / "back" / weights) == tensors_of(theirs / weights)


def scaled(adapter: Path, base: Path) -> dict[str, list[bytes]]:
    """A, and B by its layer's scale, of every layer as PEFT has them in memory."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = {
        name: m for name, m in peft.PeftModel.from_pretrained(model, adapter).named_modules() if hasattr(m, "lora_A")
    }
    return {
        name: [bytes(memoryview(v.numpy())) for v in (a.data, b.data * layer.scaling["default"])]
        for name, layer in layers.items()
        for a, b in [(layer.lora_A["default"].weight, layer.lora_B["default"].weight)]
    }


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("layers", [1, -1])
def test_a_run_there_and_back(tmp_path: Path, kind: str, layers: int) -> None:
    base = make_base(tmp_path / "base", "qwen3")
    run = make_run(base, tmp_path / "run", fine_tune_type=kind, num_layers=layers)
    export_peft(str(base), run, tmp_path / "exported")
    np.testing.assert_allclose(logits_of_peft(base, tmp_path / "exported"), logits_of_mlx_lm(base, run), atol=1e-4)
    import_peft(tmp_path / "exported", tmp_path / "back")
    assert (tmp_path / "back" / "adapter_config.json").read_text() == (run / "adapter_config.json").read_text()
    assert tensors_of(tmp_path / "back" / "adapters.safetensors") == tensors_of(run / "adapters.safetensors")


@pytest.mark.parametrize("fine_tune_type", ["lora", "dora"])
def test_a_reward_model_gives_the_same_rewards(tmp_path: Path, fine_tune_type: str) -> None:
    """As a sequence classifier of transformers: alone and in a padded batch, by either of PEFT's ways to load it."""
    run, rows = tmp_path / "run", rows_of(PAIRS)
    settings = {"loss": "reward", "iters": 6, "learning_rate": 3e-3, "fine_tune_type": fine_tune_type, "rank": 4}
    train(TrainConfig(model=str(CHECKPOINT), data=str(PAIRS), adapter_path=str(run), valid_pairs=0, **settings))
    export_peft(str(CHECKPOINT), run, tmp_path / "exported")
    ours = RewardModel.load(run)
    answers = [{"prompt": row["prompt"], "completion": row[name]} for row in rows for name in ("chosen", "rejected")]
    rewards = ours.rewards(answers)
    assert rewards.std() > 0.02
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    texts = [tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in answers]
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        CHECKPOINT, num_labels=1, dtype=torch.float32
    )
    base.config.pad_token_id = tokenizer.pad_token_id
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "exported").eval()
        np.testing.assert_allclose(np.asarray(theirs(**batch).logits)[:, 0], rewards, atol=1e-4)
        automatic = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "exported", num_labels=1)
        single = tokenizer(texts[0], return_tensors="pt", add_special_tokens=False)
        np.testing.assert_allclose(automatic.eval()(**single).logits.item(), rewards[0], atol=1e-4)


@pytest.mark.parametrize("kind", sorted((SAME_LAYER_NAMES | TRANSFORMERS_PREFIXES.keys()) - WITHOUT_CLASSIFIER))
def test_rewards_of_every_model_type(tmp_path: Path, kind: str) -> None:
    base = make_base(tmp_path / "base", kind)
    run = make_run(base, tmp_path / "run", keys=ATTENTION if kind in EXPERTS else None)
    model = load_model(str(base)).model
    hidden_size = count_hidden(require_head_split(Network.from_model(model)))
    weight = 0.3 * mx.random.normal((1, hidden_size), key=mx.random.key(4))
    mx.save_safetensors(str(run / REWARD_HEAD_FILE), {"reward_head.weight": weight})
    network = load_reward_network(load_model(str(base)).model, str(run))
    batch = MicroBatch((0,), ((tuple(IDS[0][:3]), tuple(IDS[0][3:])), (tuple(IDS[0][:3]), tuple(IDS[0][3:6]))))
    export_peft(str(base), run, tmp_path / "exported")
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(classifier, tmp_path / "exported").eval()
    with torch.no_grad():
        expected = [theirs(torch.tensor([ids])).logits.item() for ids in (IDS[0], IDS[0][:6])]
    atol = 5e-4 if kind == "gemma" else 1e-4  # mlx-lm's GELU is exact, the one there an approximation
    np.testing.assert_allclose(network.logps(batch).sums, expected, atol=atol)


def test_types_without_a_classifier_are_refused(tmp_path: Path) -> None:
    known = {config.model_type for config in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING}
    assert WITHOUT_CLASSIFIER - known == WITHOUT_CLASSIFIER - {"qwen3_5"}
    base = make_base(tmp_path / "base", "granite")
    run = make_run(base, tmp_path / "run")
    mx.save_safetensors(str(run / REWARD_HEAD_FILE), {"reward_head.weight": mx.zeros((1, 64))})
    with pytest.raises(UserError, match="no sequence classifier"):
        export_peft(str(base), run, tmp_path / "exported")
