"""What is known of a model folder: a copy of a Hub's model, a fine-tune, or a folder of which nothing is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dpo.lineage.lineage_file import BaseModel, Lineage, Publication, write_lineage
from mlx_dpo.lineage.lineage_steps import current_lineage, fused_lineage, record_publication, run_lineage
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.lineage.weights_digest import weights_digest
from tests.conftest import CHECKPOINT, TRL

COMMIT = "a" * 40


def card(folder: Path, **metadata: object) -> None:
    """A README.md with these metadata."""
    (folder / "README.md").write_text(f"---\n{json.dumps(metadata)}\n---\n")


def test_a_digest_is_of_the_tensors_and_not_of_their_files(checkpoint: Path) -> None:
    original = weights_digest(checkpoint)
    assert original == weights_digest(CHECKPOINT) and original
    tensors = mx.load(str(checkpoint / "model.safetensors"))
    halves = [dict(list(tensors.items())[part::2]) for part in (0, 1)]
    for i, half in enumerate(halves):
        mx.save_safetensors(str(checkpoint / f"model-{i}.safetensors"), half, metadata={"other": "metadata"})
    (checkpoint / "model.safetensors").unlink()
    assert weights_digest(checkpoint) == original
    for name, tensor in halves[1].items():
        changed = {**halves[1], name: tensor * 1.001}
        mx.save_safetensors(str(checkpoint / "model-1.safetensors"), changed)
        assert weights_digest(checkpoint) != original, name


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{"])
def test_no_digest_of_damaged_or_missing_weights(tmp_path: Path, content: bytes) -> None:
    assert weights_digest(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(content)
    assert weights_digest(tmp_path) is None


def test_a_model_of_the_hub_and_its_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--big--base.4bit" / "snapshots" / COMMIT
    shutil.copytree(CHECKPOINT, snapshot)
    for base in (identify_model("big/base.4bit@main", snapshot), identify_model(str(snapshot))):
        assert (base.repo_id, base.commit, base.weights) == ("big/base.4bit", COMMIT, weights_digest(CHECKPOINT))
    assert identify_model("big/base@main") == BaseModel("big/base@main", "big/base", "main")
    assert identify_model("big/base", may_be_hub_id=False).repo_id is None
    shutil.copytree(CHECKPOINT, snapshot.parent / "mine" / "fused")
    assert identify_model(str(snapshot.parent / "mine" / "fused")).repo_id is None


def test_only_a_declared_copy_stands_for_what_a_card_names(checkpoint: Path) -> None:
    """mlx-lm writes `base_model` alone, when it converts as when it fuses."""
    for metadata in (
        {"base_model": "org/x"},
        {"base_model": "org/x", "base_model_relation": "finetune"},
        {"base_model": ["org/x", "org/y"], "base_model_relation": "quantized"},
        {"base_model": "/home/me/x", "base_model_relation": "quantized"},
    ):
        card(checkpoint, **metadata)
        base = identify_model(str(checkpoint))
        assert (base.repo_id, base.quantized_from) == (None, None), metadata
    for name in ("org/x", ["org/x"]):
        card(checkpoint, base_model=name, base_model_relation="quantized")
        assert identify_model(str(checkpoint)).quantized_from == "org/x"
    write_lineage(checkpoint, Lineage("fused", BaseModel("org/x", "org/x"), ("sft",)))
    assert identify_model(str(checkpoint)).quantized_from is None


def now(base: BaseModel) -> BaseModel:
    """A recorded base with what is known of it since."""
    current = current_lineage(Lineage("adapter", base)).base
    assert current
    return current


def test_a_pushed_folder_is_on_the_hub_until_its_weights_change(checkpoint: Path) -> None:
    record_publication(checkpoint, "me/tuned", COMMIT)
    assert not (checkpoint / "lineage.json").exists()
    write_lineage(checkpoint, Lineage("fused", BaseModel("org/x", "org/x"), ("sft",)))
    before = identify_model(str(checkpoint))
    record_publication(checkpoint, "me/tuned", COMMIT)
    assert before.repo_id is None
    assert identify_model(str(checkpoint)).repo_id == now(before).repo_id == "me/tuned"
    tensors = mx.load(str(checkpoint / "model.safetensors"))
    mx.save_safetensors(str(checkpoint / "model.safetensors"), {k: v * 1.1 for k, v in tensors.items()})
    assert identify_model(str(checkpoint)).repo_id is None and now(before).repo_id is None


def test_the_same_weights_under_another_name_are_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    """A run of a Hub's model, fused into a copy of it in a folder, is derived from the Hub's."""
    weights, run = weights_digest(checkpoint), tmp_path / "run"
    shutil.copytree(TRL / "adapter", run)
    write_lineage(run, Lineage("adapter", BaseModel("org/x", "org/x", weights=weights), ("sigmoid",)))
    assert fused_lineage(run, identify_model(str(checkpoint))).base == BaseModel("org/x", "org/x", weights=weights)
    other = fused_lineage(run, BaseModel("org/y", "org/y", weights="other"))
    assert other.base and other.trained_on and (other.base.repo_id, other.trained_on.repo_id) == ("org/y", "org/x")


def test_the_adapter_that_a_run_starts_from_is_a_stage(tmp_path: Path) -> None:
    base, run = BaseModel("./x", weights="1"), tmp_path / "run"
    run.mkdir()
    write_lineage(run, Lineage("adapter", base, ("sft",)))
    start = run_lineage(base, "sigmoid", str(run)).starts_from
    assert start == Lineage("adapter", None, ("sft",))
    other = run_lineage(BaseModel("./y", weights="2"), "sigmoid", str(run)).starts_from
    assert other and other.base == base
    assert run_lineage(base, "sigmoid", str(tmp_path / "gone")).starts_from == Lineage("adapter", None)


def test_a_checkpoint_has_its_runs_lineage(tmp_path: Path) -> None:
    from mlx_dpo.lineage.lineage_steps import read_adapter_lineage

    checkpoint, lineage = tmp_path / "checkpoints" / "0000004", Lineage("adapter", BaseModel("x"), ("ipo",))
    checkpoint.mkdir(parents=True)
    write_lineage(tmp_path, lineage)
    assert read_adapter_lineage(checkpoint) == lineage


def test_publication_is_no_part_of_what_is_shared() -> None:
    lineage = Lineage("fused", BaseModel("x"), published=Publication("me/x", COMMIT, None))
    from mlx_dpo.lineage.lineage_file import shareable_lineage

    assert shareable_lineage(lineage).published is None
