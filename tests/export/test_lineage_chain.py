"""SFT, fused, DPO, fused, and once more: what each folder, its card and its commands say that it is derived from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, snapshot_download

from mlx_dpo.lineage.lineage_file import read_lineage
from mlx_dpo.lineage.weights_digest import weights_digest
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS
from tests.export.family_models import save_adapter, save_model
from tests.hub.server import Hub

Cli = Callable[..., CommandResult]
BASE = "org/tiny"


@pytest.fixture
def base_on_hub(hub: Hub) -> str:
    """A model of the Hub."""
    hub.store.create("models", BASE)
    files = {file.name: file.read_bytes() for file in CHECKPOINT.iterdir()}
    hub.store.commit("models", BASE, "main", "model", {**files, "README.md": b"---\nlicense: mit\n---\nTiny.\n"})
    return BASE


@pytest.fixture
def run_command(mlx_dpo: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Run a command that succeeds, in a folder of the user's; returns what it printed to stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        ran = mlx_dpo(*arguments)
        assert ran.code == 0, ran.err
        return ran.out

    return run


def train(run_command: Callable[..., str], model: str, run: str, loss: str, *flags: object) -> None:
    settings = ("--iters", 2, "--learning-rate", "3e-3", "--valid-data", PAIRS, "--samples", 0)
    run_command("train", "--model", model, "--data", PAIRS, "--adapter-path", run, "--loss", loss, *settings, *flags)


def card(folder: str | Path) -> ModelCard:
    return ModelCard((Path(folder) / "README.md").read_text(), ignore_metadata_errors=False)


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def peft_config(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "adapter_config.json").read_text())


def require_export_refused(mlx_dpo: Cli, run: str, lineage: str) -> None:
    """`export --format peft` names no base by itself, and says what to do."""
    ran = mlx_dpo("export", "--format", "peft", "--adapter-path", run, f"{run}-peft")
    assert ran.code == 2 and not Path(f"{run}-peft").exists()
    message = ran.err[ran.err.index("error: ") :]  # after the progress lines
    assert lineage in message and "--base-model" in message and len(message.strip().splitlines()) == 2, ran.err


def test_the_whole_chain_twice(hub: Hub, base_on_hub: str, run_command: Callable[..., str], mlx_dpo: Cli) -> None:
    train(run_command, base_on_hub, "sft", "sft")
    assert card("sft").data.base_model == BASE and "Lineage: `SFT of org/tiny`" in card("sft").text
    run_command("export", "--format", "peft", "--adapter-path", "sft", "sft-peft")
    assert peft_config("sft-peft")["base_model_name_or_path"] == BASE
    run_command("fuse", "--adapter-path", "sft", "--save-path", "sft-model")
    assert (card("sft-model").data.base_model, card("sft-model").data.get("base_model_relation")) == (BASE, "finetune")

    model = "./sft-model"
    for stage, lineage in (("dpo", "DPO of SFT of org/tiny"), ("again", "DPO of DPO of SFT of org/tiny")):
        base_name = Path(model).name
        train(run_command, model, stage, "sigmoid")
        run_command("fuse", "--adapter-path", stage, "--save-path", f"{stage}-model")
        for folder, relation in ((stage, "adapter"), (f"{stage}-model", "finetune")):
            text = card(folder).text
            assert card(folder).data.base_model is None and card(folder).data.get("base_model_relation") is None
            assert f"Lineage: `{lineage}`" in text and f"`{base_name}`, is not on the Hub" in text, relation
        for command in lines(card(stage).text, "mlx_lm.generate") + lines(card(stage).text, "mlx-dpo fuse"):
            assert f"--model PATH/TO/{base_name} " in command
        assert not lines(card(f"{stage}-model").text, "mlx_lm.generate --model PATH")
        require_export_refused(mlx_dpo, stage, lineage.partition(" of ")[2])
        run_command("export", "--format", "peft", "--adapter-path", stage, "--base-model", model, f"{stage}-peft")
        assert peft_config(f"{stage}-peft")["base_model_name_or_path"] == model
        assert json.loads(run_command("report", stage, "--json"))["runs"][0]["lineage"] == lineage
        assert f"Lineage: {lineage}" in run_command("report", stage)
        assert f"Lineage: {lineage}" in Path(stage, "report.html").read_text()
        model = f"./{stage}-model"
    run_command("push", "again", "--repo-id", "tester/again")
    pushed = ModelCard(hub.content("tester/again", "README.md").decode(), ignore_metadata_errors=False)
    assert (pushed.data.base_model, pushed.data.license) == (None, "mit"), "the license is that of the first base"


def test_a_base_that_is_pushed_is_named(
    hub: Hub, base_on_hub: str, run_command: Callable[..., str], mlx_dpo: Cli, tmp_path: Path
) -> None:
    train(run_command, base_on_hub, "sft", "sft")
    run_command("fuse", "--adapter-path", "sft", "--save-path", "sft-model")
    train(run_command, "sft-model", "dpo", "sigmoid")
    run_command("push", "sft-model", "--repo-id", "tester/sft", "--public")
    commit = hub.store.resolve("models", "tester/sft", "main")
    run_command("push", "sft-model", "--repo-id", "tester/sft", "--public")
    assert hub.store.resolve("models", "tester/sft", "main") == commit, "what a push records changes nothing there"
    run_command("push", "dpo", "--repo-id", "tester/dpo", "--public")
    pushed = ModelCard(hub.content("tester/dpo", "README.md").decode(), ignore_metadata_errors=False)
    assert (pushed.data.base_model, pushed.data.get("base_model_relation")) == ("tester/sft", "adapter")
    assert "mlx_lm.generate --model tester/sft --adapter-path dpo" in pushed.text
    assert "not on the Hub" not in pushed.text and "Lineage: `DPO of tester/sft (SFT of org/tiny)`" in pushed.text
    run_command("export", "--format", "peft", "--adapter-path", "dpo", "dpo-peft")
    assert peft_config("dpo-peft")["base_model_name_or_path"] == "tester/sft"
    # From the Hub, in a place of its own: the stages come with it, and nothing of this machine.
    shared = hub.content("tester/dpo", "lineage.json").decode()
    base = json.loads(shared)["base"]
    assert str(tmp_path) not in shared and base["weights"] == weights_digest(Path("sft-model"))
    assert (base["name"], base["repo_id"], base["commit"]) == ("tester/sft", "tester/sft", commit)
    fetched = snapshot_download("tester/sft")
    train(run_command, "tester/sft", "more", "sigmoid")
    lineage = read_lineage("more")
    assert lineage and lineage.base and lineage.base.commit == Path(fetched).name == commit
    assert "Lineage: `DPO of tester/sft (SFT of org/tiny)`" in card("more").text
    assert card("more").data.base_model == "tester/sft"


def test_a_base_that_the_user_names(hub: Hub, base_on_hub: str, run_command: Callable[..., str], mlx_dpo: Cli) -> None:
    """As the way out where nothing is recorded: a folder that was made by other means and pushed."""
    shutil.copytree(CHECKPOINT, "mine")
    train(run_command, "mine", "run", "sigmoid")
    assert card("run").data.base_model is None
    run_command("push", "run", "--repo-id", "tester/run", "--base-model", BASE)
    text = hub.content("tester/run", "README.md").decode()
    assert f"base_model: {BASE}\n" in text and f"mlx_lm.generate --model {BASE} " in text and "license: mit" in text
    ran = mlx_dpo("push", "run", "--repo-id", "tester/run", "--base-model", "./mine")
    assert ran.code == 2 and "not a Hub id" in ran.err


def test_what_mlx_lm_fused_is_not_taken_for_what_its_card_names(run_command: Callable[..., str], mlx_dpo: Cli) -> None:
    """README.md as mlx_lm.convert and mlx_lm.fuse both write it."""
    shutil.copytree(CHECKPOINT, "gemma")
    Path("gemma", "README.md").write_text("---\nlibrary_name: mlx\nbase_model: org/x\ntags:\n- mlx\n---\n")
    train(run_command, "gemma", "run", "sigmoid")
    assert card("run").data.base_model is None and "org/x" not in card("run").text
    ran = mlx_dpo("export", "--format", "peft", "--adapter-path", "run", "run-peft")
    assert ran.code == 2 and "--base-model org/x" in ran.err and "fine-tune" in ran.err
    Path("gemma", "README.md").write_text("---\nbase_model: org/x\nbase_model_relation: quantized\n---\n")
    run_command("export", "--format", "peft", "--adapter-path", "run", "run-peft")
    assert peft_config("run-peft")["base_model_name_or_path"] == "org/x"
    train(run_command, "gemma", "run2", "sigmoid")
    assert card("run2").data.base_model == "org/x"


def test_quantized_on_the_hub(hub: Hub, run_command: Callable[..., str], mlx_dpo: Cli, tmp_path: Path) -> None:
    """mlx-community names the original without a relation, as for a fine-tune, so PEFT's base is asked for."""
    model = save_model(tmp_path / "model", "qwen3", {"group_size": 32, "bits": 4, "mode": "affine"})
    save_adapter(tmp_path / "run", model)
    name, files = "mlx-community/tiny-4bit", {file.name: file.read_bytes() for file in model.iterdir()}
    hub.store.create("models", name)
    for relation in ("", "base_model_relation: quantized\n"):
        readme = f"---\nlibrary_name: mlx\nbase_model: org/tiny\n{relation}---\nConverted.\n".encode()
        hub.store.commit("models", name, "main", "model", {**files, "README.md": readme})
        out = f"peft{len(relation)}"
        export = ("export", "--format", "peft", "--model", name, "--adapter-path", "run", out)
        if relation:
            run_command(*export)
        else:
            ran = mlx_dpo(*export)
            assert ran.code == 2 and "quantized by mlx" in ran.err and "--base-model org/tiny" in ran.err
            run_command(*export, "--base-model", "org/tiny")
        assert peft_config(out)["base_model_name_or_path"] == "org/tiny"
        lineage = read_lineage(out)
        assert lineage and lineage.trained_on and lineage.trained_on.repo_id == name


def test_from_peft_and_back(hub: Hub, base_on_hub: str, run_command: Callable[..., str]) -> None:
    train(run_command, f"{base_on_hub}@main", "sft", "sft")
    run_command("export", "--format", "peft", "--adapter-path", "sft", "peft")
    assert (peft_config("peft")["base_model_name_or_path"], peft_config("peft")["revision"]) == (BASE, "main")
    shutil.copytree(CHECKPOINT, "mine")
    run_command("import", "peft", "back", "--model", "mine")
    back = read_lineage("back")
    assert back and back.kind == "adapter" and back.methods == ("sft",) and back.base
    run_command("push", "peft", "--repo-id", "tester/peft")
    text = hub.content("tester/peft", "README.md").decode()
    assert f"base_model: {BASE}\n" in text and f'from_pretrained("{BASE}")' in text
    Path("peft", "lineage.json").unlink()  # as PEFT itself leaves it
    run_command("import", "peft", "again", "--model", "mine")
    again = read_lineage("again")
    assert again and again.trained_on and again.trained_on.repo_id == BASE and again.methods == ()
    train(run_command, "mine", "dpo", "sigmoid", "--init-adapter", "back")
    assert "Lineage: `DPO of SFT of mine`" in card("dpo").text


def test_runs_of_earlier_versions_say_what_their_config_says(
    hub: Hub, base_on_hub: str, run_command: Callable[..., str]
) -> None:
    train(run_command, base_on_hub, "sft", "sft")
    for name in ("lineage.json", "training.json"):
        Path("sft", name).unlink()
    assert yaml.safe_load(Path("sft", "config.yaml").read_text())["model"] == BASE
    run_command("fuse", "--adapter-path", "sft", "--save-path", "model")
    lineage = read_lineage("model")
    assert lineage and lineage.methods == ("sft",) and lineage.base and lineage.base.repo_id == BASE
    assert lineage.trained_on is None
    run_command("export", "--format", "peft", "--adapter-path", "sft", "peft")
    run_command("push", "sft", "--repo-id", "tester/sft")
    assert f"base_model: {BASE}\n" in hub.content("tester/sft", "README.md").decode()
