"""Adapters in PEFT's format, against what PEFT wrote and computed (make_peft_reference.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_dpo import TrainConfig, train
from mlx_dpo.adapters.adapter_folder import read_adapter
from mlx_dpo.errors import UserError
from mlx_dpo.export.peft.peft_export import export_peft
from mlx_dpo.export.peft.peft_import import import_peft
from tests.conftest import CHECKPOINT, PAIRS, TRL

WRITTEN = Path(__file__).parent / "peft"
REFERENCE = json.loads((WRITTEN / "reference.json").read_text())
WEIGHTS = "adapter_model.safetensors"
MODEL = str(CHECKPOINT)


def logits(adapter: Path) -> np.ndarray:
    model, _ = mlx_lm.load(MODEL, adapter_path=str(adapter))
    return np.array(model(mx.array([REFERENCE["ids"]]))[0, -2:])


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def same_tensors(one: Path, other: Path) -> bool:
    a, b = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


def last_names(modules: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in modules}


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "patterns"])
def test_import_gives_pefts_logits(tmp_path: Path, name: str) -> None:
    import_peft(WRITTEN / name, tmp_path / "run", model=MODEL)
    actual = logits(tmp_path / "run")
    np.testing.assert_allclose(actual, REFERENCE["logits"][name], atol=1e-4)
    others = [np.abs(actual - v).max() for k, v in REFERENCE["logits"].items() if k != name]
    assert min(others) > 0.01, "the adapters are too alike to be told apart"


def test_export_gives_pefts_logits(tmp_path: Path) -> None:
    """PEFT was seen to load the committed export; it is what is written now."""
    export_peft(MODEL, TRL / "adapter", tmp_path / "out", base_model="tests/trl/checkpoint")
    assert config_of(tmp_path / "out") == config_of(WRITTEN / "exported")
    assert same_tensors(tmp_path / "out", WRITTEN / "exported")
    np.testing.assert_allclose(logits(TRL / "adapter"), REFERENCE["logits"]["exported"], atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora"])
def test_a_round_trip_from_peft_is_bit_equal(tmp_path: Path, name: str) -> None:
    import_peft(WRITTEN / name, tmp_path / "run", model=MODEL)
    export_peft(MODEL, tmp_path / "run", tmp_path / "back", base_model="tests/trl/checkpoint")
    assert same_tensors(WRITTEN / name, tmp_path / "back")
    theirs, ours = config_of(WRITTEN / name), config_of(tmp_path / "back")
    alpha = theirs["lora_alpha"] * (theirs["r"] ** 0.5 if theirs["use_rslora"] else 1)
    assert ours["lora_alpha"] == pytest.approx(alpha, rel=1e-15)
    for key in ours.keys() - {"lora_alpha", "use_rslora", "target_modules"}:
        assert ours[key] == theirs[key], key
    assert last_names(ours["target_modules"]) == last_names(theirs["target_modules"])


def test_a_round_trip_of_ranks_and_scales_that_vary(tmp_path: Path) -> None:
    """A comes back as it was; B and the scale as one, here exactly, for the scales differ by powers of two."""
    import_peft(WRITTEN / "patterns", tmp_path / "run", model=MODEL)
    export_peft(MODEL, tmp_path / "run", tmp_path / "back")
    theirs, ours = load_file(WRITTEN / "patterns" / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    config = config_of(tmp_path / "back")
    assert theirs.keys() == ours.keys() and config["layers_to_transform"] == [0]
    for layer, scale in {"self_attn.q_proj": 1 / 1, "self_attn.v_proj": 4 / 2, "mlp.up_proj": 16 / 4}.items():
        name = f"model.layers.0.{layer}"
        a, b = (f"base_model.model.{name}.lora_{x}.weight" for x in "AB")
        rank = config["rank_pattern"].get(name, config["r"])
        own = config["alpha_pattern"].get(name, config["lora_alpha"]) / rank
        assert ours[a].tobytes() == theirs[a].tobytes() and ours[b].shape[1] == rank
        assert (ours[b] * own).tobytes() == (theirs[b] * scale).tobytes()


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("layers", [1, -1])
def test_a_round_trip_of_a_run_is_bit_equal(tmp_path: Path, kind: str, layers: int) -> None:
    overrides = {"fine_tune_type": kind, "num_layers": layers, "rank": 3, "iters": 2, "learning_rate": 1e-3}
    train(TrainConfig(model=MODEL, data=str(PAIRS), adapter_path=str(tmp_path / "run"), **overrides))
    export_peft(MODEL, tmp_path / "run", tmp_path / "peft")
    import_peft(tmp_path / "peft", tmp_path / "back", model=MODEL)
    assert config_of(tmp_path / "back") == config_of(tmp_path / "run")
    (_, ours), (_, back) = read_adapter(tmp_path / "run"), read_adapter(tmp_path / "back")
    assert ours.keys() == back.keys() and all(mx.array_equal(ours[k], back[k]) for k in ours)
    assert config_of(tmp_path / "peft")["layers_to_transform"] == (None if layers == -1 else [1])


def test_a_run_starts_from_an_import(tmp_path: Path) -> None:
    """Ranks that were padded are trained no further than PEFT's own would be."""
    import_peft(WRITTEN / "patterns", tmp_path / "start", model=MODEL)
    overrides = {"init_adapter": str(tmp_path / "start"), "iters": 3, "learning_rate": 1e-3, "valid_data": str(PAIRS)}
    result = train(TrainConfig(model=MODEL, data=str(PAIRS), adapter_path=str(tmp_path / "run"), **overrides))
    assert result.before["rewards/margins"] == 0 < result.after["rewards/margins"]
    export_peft(MODEL, tmp_path / "run", tmp_path / "peft")
    theirs, ours = load_file(WRITTEN / "patterns" / WEIGHTS), load_file(tmp_path / "peft" / WEIGHTS)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_base_is_the_one_that_the_model_was_quantized_from(checkpoint: Path, tmp_path: Path) -> None:
    card = "---\nbase_model: Qwen/Qwen3-4B\n{}---\nQuantized.\n"
    (checkpoint / "README.md").write_text(card.format("base_model_relation: quantized\n"))
    export_peft(str(checkpoint), TRL / "adapter", tmp_path / "out")
    assert config_of(tmp_path / "out")["base_model_name_or_path"] == "Qwen/Qwen3-4B"
    (checkpoint / "README.md").write_text(card.format(""))
    with pytest.raises(UserError, match=r"fine-tuning or only by conversion(?s:.*)--base-model Qwen/Qwen3-4B"):
        export_peft(str(checkpoint), TRL / "adapter", tmp_path / "other")


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[..., Path]:
    """A copy of PEFT's adapter `lora` with other options or other tensors."""

    def make(options: dict[str, Any] | None = None, tensors: dict[str, tuple[int, ...]] | None = None) -> Path:
        folder = Path(shutil.copytree(WRITTEN / "lora", tmp_path / "damaged"))
        (folder / "adapter_config.json").write_text(json.dumps(config_of(folder) | (options or {})))
        new = {f"base_model.model.{name}": np.ones(shape, np.float32) for name, shape in (tensors or {}).items()}
        save_file(load_file(folder / WEIGHTS) | new, folder / WEIGHTS)
        return folder

    return make


LAYER = "model.layers.0.self_attn.q_proj"
REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"options": {"peft_type": "IA3"}}, ("peft_type", "IA3")),
    ({"options": {"target_parameters": ["experts.w1"]}}, ("target_parameters",)),
    ({"options": {"init_lora_weights": "pissa_niter_16"}}, ("init_lora_weights", "pissa_niter_16")),
    ({"options": {"lora_alpha": "much"}}, ("adapter_config.json", "much")),
    ({"tensors": {"lm_head.weight": (300, 32)}}, ("lm_head.weight", "modules_to_save")),
    ({"tensors": {"model.embed_tokens.lora_embedding_A": (2, 300)}}, ("embed_tokens.lora_embedding_A",)),
    ({"tensors": {f"{LAYER}.lora_B.bias": (64,)}}, (f"{LAYER}.lora_B.bias",)),
    ({"tensors": {"lm_head.lora_A.weight": (2, 32), "lm_head.lora_B.weight": (300, 2)}}, ("lm_head", "tied")),
    ({"tensors": {"model.layers.7.mlp.up_proj.lora_A.weight": (2, 32)}}, ("lacks a factor", "layers.7")),
    ({"tensors": {f"{LAYER}.lora_A.weight": (2, 40)}}, (f"{LAYER}.lora_a has shape (40, 2)", "--model")),
]


@pytest.mark.parametrize(("what", "expected"), REFUSED, ids=[expected[0] for _, expected in REFUSED])
def test_refused(damaged: Callable[..., Path], tmp_path: Path, what: dict[str, Any], expected: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        import_peft(damaged(**what), tmp_path / "out", model=MODEL)
    assert all(word in str(error.value) for word in expected), str(error.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("kind", "keys", "expected"), [
    ("qwen3_moe", ["mlp.gate"], r"(?s)router.*mlp.gate.*mlx-dpo fuse --adapter-path .*run --save-path FOLDER"),
    ("qwen3_next", ["self_attn.q_proj"], r"(?s)'qwen3_next'.*mlx-dpo fuse --adapter-path"),
    ("qwen3_next", ["mlp.switch_mlp.up_proj"], r"(?s)'qwen3_next'.*mlx-dpo fuse --adapter-path(?!.*--lora-keys)"),
])  # fmt: skip
def test_what_pefts_cant_hold_is_refused_by_name(tmp_path: Path, kind: str, keys: Any, expected: str) -> None:
    from tests.forward.test_architectures import make_model

    model = make_model(tmp_path / "model", kind, None)
    train(TrainConfig(model=str(model), data=str(PAIRS), adapter_path=str(tmp_path / "run"), iters=1, lora_keys=keys))
    with pytest.raises(UserError, match=expected):
        export_peft(str(model), tmp_path / "run", tmp_path / "out")


def test_the_keys_named_for_a_mixture_of_experts_train_an_adapter_that_exports(tmp_path: Path) -> None:
    from tests.forward.test_architectures import make_model

    model = make_model(tmp_path / "model", "qwen3_moe", None)
    settings = {"model": str(model), "data": str(PAIRS), "iters": 1}
    train(TrainConfig(**settings, adapter_path=str(tmp_path / "run")))
    with pytest.raises(UserError, match=r"(?s)experts.*switch_mlp.*mlx-dpo fuse") as raised:
        export_peft(str(model), tmp_path / "run", tmp_path / "out")
    keys = str(raised.value).rpartition("--lora-keys ")[2].split(",")
    assert set(keys) == {f"self_attn.{name}_proj" for name in "qkvo"}
    train(TrainConfig(**settings, adapter_path=str(tmp_path / "other"), lora_keys=keys))
    export_peft(str(model), tmp_path / "other", tmp_path / "out")


def test_names_of_a_model_inside_another(tmp_path: Path) -> None:
    """Gemma 3 as transformers names it (seen to load by test_peft_live.py), now and as older versions did."""
    from tests.export.tiny import make_model

    model = make_model(tmp_path / "model", "gemma3")
    now, before = "model.language_model.layers.5", "language_model.model.layers.5"
    for start in (now, before):
        folder = tmp_path / start
        folder.mkdir()
        name = f"base_model.model.{start}.mlp.up_proj.lora_"
        tensors = {f"{name}A.weight": np.ones((2, 64), np.float32), f"{name}B.weight": np.ones((96, 2), np.float32)}
        save_file(tensors, folder / WEIGHTS)
        (folder / "adapter_config.json").write_text(json.dumps(config_of(WRITTEN / "lora")))
        assert import_peft(folder, tmp_path / f"run-{start}", model=str(model)).num_layers == 1
        export_peft(str(model), tmp_path / f"run-{start}", tmp_path / f"back-{start}")
        assert same_tensors(tmp_path / f"back-{start}", tmp_path / now)
        assert config_of(tmp_path / f"back-{start}")["target_modules"] == [f"{now}.mlp.up_proj"]


def test_an_adapter_without_layers_is_refused(damaged: Callable[..., Path], tmp_path: Path) -> None:
    folder = damaged()
    save_file({}, folder / WEIGHTS)
    with pytest.raises(UserError, match="no LoRA layer"):
        import_peft(folder, tmp_path / "out", model=MODEL)


def test_other_refusals(checkpoint: Path, tmp_path: Path) -> None:
    train(TrainConfig(model=MODEL, data=str(PAIRS), adapter_path=str(tmp_path / "run"), iters=1, fine_tune_type="full"))
    with pytest.raises(UserError, match="no adapter"):
        export_peft(MODEL, tmp_path / "run", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UserError, match="exists already"):
        export_peft(MODEL, TRL / "adapter", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "kept"
    with pytest.raises(UserError, match="mlx-dpo import"):
        read_adapter(WRITTEN / "lora")
    with pytest.raises(UserError, match="not a PEFT adapter"):
        import_peft(TRL / "adapter", tmp_path / "in", model=MODEL)
