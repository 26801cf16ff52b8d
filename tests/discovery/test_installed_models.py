"""Models in the Hub cache, in LM Studio's folder and in folders: what is found, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_dpo.discovery.hub_cache import cached_repos, latest_snapshot
from mlx_dpo.discovery.installed_models import (
    ModelSource,
    complete_model_names,
    find_in_lm_studio,
    installed_models,
    models_in_folders,
)
from mlx_dpo.discovery.lm_studio import lm_studio_folders, lm_studio_models
from mlx_dpo.discovery.model_contents import read_contents
from tests.discovery.fake_models import (
    COMMIT,
    QUANTIZED,
    Machine,
    config,
    model_files,
    write_hub_model,
    write_model,
)


def test_an_empty_machine(machine: Machine) -> None:
    assert installed_models() == [] and cached_repos("model") == {} and lm_studio_models() == {}


def test_the_layout_is_that_of_huggingface_hub(machine: Machine) -> None:
    """huggingface_hub itself reads the folder that these tests write."""
    from huggingface_hub import scan_cache_dir

    write_hub_model(machine.hub, "mlx-community/Tiny-4bit", model_files(config("llama")))
    (repo,) = scan_cache_dir(machine.hub).repos
    assert repo.repo_id == "mlx-community/Tiny-4bit" and [r.commit_hash for r in repo.revisions] == [COMMIT]
    (model,) = installed_models()
    assert (model.name, model.path) == (repo.repo_id, next(iter(repo.revisions)).snapshot_path)
    assert model.contents.bytes == repo.size_on_disk


def test_hub_cache_and_lm_studio(machine: Machine) -> None:
    write_hub_model(machine.hub, "mlx-community/Tiny-4bit", model_files(config("llama", quantization=QUANTIZED)))
    write_hub_model(machine.hub, "someone/data", {"README.md": {}}, "dataset")
    write_model(machine.lm_studio / "mlx-community" / "Tiny-8bit", model_files(config("qwen3")))
    write_model(machine.lm_studio / "mlx-community" / "Tiny-4bit", model_files(config("llama")))
    write_model(machine.lm_studio / ".hidden" / "x", model_files(config("llama")))
    found = {model.name: model.source for model in installed_models()}
    assert found == {
        str(machine.lm_studio / "mlx-community" / "Tiny-4bit"): ModelSource.LM_STUDIO,  # its id is the Hub cache's
        "mlx-community/Tiny-4bit": ModelSource.HUB,
        "mlx-community/Tiny-8bit": ModelSource.LM_STUDIO,
    }
    assert find_in_lm_studio("mlx-community/Tiny-8bit") == machine.lm_studio / "mlx-community" / "Tiny-8bit"
    assert find_in_lm_studio("mlx-community/Tiny-4bit") is None
    assert find_in_lm_studio("mlx-community/Tiny-2bit") is None and find_in_lm_studio("./Tiny-8bit") is None
    Path("mlx-community/Tiny-8bit").mkdir(parents=True)
    assert find_in_lm_studio("mlx-community/Tiny-8bit") is None  # a folder here


def test_lm_studio_replaces_a_partial_download(machine: Machine) -> None:
    write_hub_model(machine.hub, "a/Tiny", {"config.json": config("llama")})  # as by plan --config-only
    folder = write_model(machine.lm_studio / "a" / "Tiny", model_files(config("llama")))
    assert find_in_lm_studio("a/Tiny") == folder and complete_model_names() == ["a/Tiny"]


def test_folders_of_lm_studio(machine: Machine) -> None:
    chosen = machine.home / "elsewhere"
    (machine.home / ".lmstudio").mkdir()
    (machine.home / ".lmstudio" / "settings.json").write_text(json.dumps({"downloadsFolder": str(chosen)}))
    own = machine.home / "own"
    (machine.home / ".lmstudio-home-pointer").write_text(f"{own}\n")
    expected = [chosen, own / "models", machine.lm_studio, machine.home / ".cache/lm-studio/models"]
    assert lm_studio_folders() == expected
    write_model(chosen / "a" / "Tiny", model_files(config("llama")))
    assert list(lm_studio_models()) == ["a/Tiny"]
    (machine.home / ".lmstudio" / "settings.json").write_text("[")
    assert lm_studio_folders() == expected[1:]


def test_the_snapshot_is_that_of_the_default_branch(machine: Machine) -> None:
    snapshot = write_hub_model(machine.hub, "a/b", model_files(config("llama")))
    repo = snapshot.parent.parent
    (repo / "snapshots" / ("f" * 40)).mkdir()
    assert latest_snapshot(repo) == snapshot
    (repo / "refs" / "main").write_text("0" * 40)
    assert latest_snapshot(repo) == repo / "snapshots" / ("f" * 40)  # another revision, downloaded last
    assert latest_snapshot(machine.hub / "none") is None


def test_models_without_an_owner_are_named_by_their_folder(machine: Machine) -> None:
    snapshot = write_hub_model(machine.hub, "gpt2", model_files(config("gpt2")))
    assert [model.name for model in installed_models()] == [str(snapshot)]


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (model_files(config("llama")), None),
        (model_files(config("llama"), shards=3), None),
        (model_files(config("llama"), shards=3, present=1), "2 of 3 weight files"),
        (model_files(config("llama"), present=0), "all weights"),
        ({"config.json": config("llama"), "model-00001-of-00002.safetensors": 9}, "1 of 2 weight files"),
        ({"config.json": config("llama"), "model.safetensors": 9}, "the tokenizer"),
    ],
)
def test_what_is_missing(files: dict[str, object], missing: str | None, tmp_path: Path) -> None:
    contents = read_contents(write_model(tmp_path, files))
    assert (contents.missing, contents.problem) == (missing, None)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"Tiny-Q4_K_M.gguf": 9}, "GGUF"),
        ({"Tiny-Q4_K_M.gguf": 9, "config.json": config("llama")}, "GGUF"),
        ({"adapter_config.json": {}, "adapters.safetensors": 9}, "an adapter"),
        ({"model_index.json": {}}, "diffusers"),
        ({"config.json": config("llama"), "pytorch_model.bin": 9}, "PyTorch"),
        ({"model.safetensors": 9}, "config.json"),
        ({"config.json": [], "model.safetensors": 9}, "config.json"),
    ],
)
def test_what_mlx_lm_cannot_load(files: dict[str, object], problem: str, tmp_path: Path) -> None:
    contents = read_contents(write_model(tmp_path, files))
    assert problem in str(contents.problem) and contents.missing is None


@pytest.mark.parametrize(
    ("changes", "bits"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, 4),
        ({"quantization_config": {"quant_method": "mxfp4"}}, 4),
        ({"quantization_config": {"quant_method": "fp8"}}, 8),
        ({}, 16),
        ({"torch_dtype": None, "dtype": "float32"}, 32),
        ({"torch_dtype": None, "text_config": {"dtype": "bfloat16"}}, 16),
        ({"torch_dtype": None}, None),
    ],
)
def test_bits(changes: dict[str, object], bits: int | None, tmp_path: Path) -> None:
    assert read_contents(write_model(tmp_path, model_files(config("llama", **changes)))).bits == bits


def test_language_models(tmp_path: Path) -> None:
    def is_language_model(model_type: str, *architectures: str) -> bool:
        files = model_files(config(model_type, architectures=list(architectures)))
        return read_contents(write_model(tmp_path, files)).is_language_model

    assert is_language_model("of_tomorrow", "TomorrowForCausalLM")
    assert is_language_model("gemma3", "Gemma3ForConditionalGeneration")  # a module of mlx-lm
    assert not is_language_model("whisper", "WhisperForConditionalGeneration")
    assert not is_language_model("bert", "BertModel")


def test_folders_that_the_user_names(tmp_path: Path) -> None:
    direct = write_model(tmp_path / "direct", model_files(config("llama")))
    inside = write_model(tmp_path / "models" / "publisher" / "Tiny", model_files(config("llama")))
    beside = write_model(tmp_path / "models" / "flat", {"x.gguf": 9})
    (direct / "nested").mkdir()
    write_model(direct / "nested", model_files(config("llama")))  # of the model itself
    found = [model.path for model in models_in_folders([direct, tmp_path / "models"])]
    assert found == [direct, beside, inside]
    assert models_in_folders([tmp_path / "models"])[0].name == str(beside)
