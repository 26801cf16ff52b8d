"""The model card: valid by the Hub's rules and its own parser, true to the run's files, and without secrets."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mlx_dpo.export.card import training_record as record
from mlx_dpo.export.card.base_model import BaseModelInfo, describe_base_model
from mlx_dpo.export.card.card_inputs import CardInputs, collect_card_inputs
from mlx_dpo.export.card.card_metadata import METRIC_LABELS
from mlx_dpo.export.card.model_card import GENERATED_MARKER, render_card, render_card_files, write_card
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.reporting.metrics_log import read_metrics
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT
from tests.hub.server import WRITE, Hub


def parsed(text: str) -> ModelCard:
    """As huggingface_hub reads it, every error raised."""
    return ModelCard(text, ignore_metadata_errors=False)


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


BASE_CARD = """---
license: llama3.2
language:
- en
- de
base_model: big/one
base_model_relation: quantized
---
It is a model.
"""


def test_the_hub_takes_it(hub: Hub, run: Path, fused: Path) -> None:
    for folder in (run, fused):
        card = parsed((folder / "README.md").read_text())
        card.validate()
        assert hub.count_requests("POST", "/api/validate-yaml")
        assert card.data.library_name == "mlx" and card.data.pipeline_tag == "text-generation"
        assert {"mlx", "dpo", "mlx-dpo"} <= set(card.data.tags)


def test_the_rules_can_say_no(hub: Hub, run: Path) -> None:
    """The server's rules find what is wrong with a card that is."""
    text = (run / "README.md").read_text()
    for bad in (
        "license: free",
        "base_model: /home/me/x",
        "pipeline_tag: chat",
        "datasets: [a/b/c]",
        "language: English",
    ):
        with pytest.raises(ValueError, match=bad.split(":")[0]):
            parsed(text.replace("model-index:", f"{bad}\nmodel-index:", 1)).validate()


def test_it_says_what_the_files_say(run: Path) -> None:
    text = (run / "README.md").read_text()
    evaluated = [line for line in read_metrics(run) if "eval_loss" in line]
    for metric, name in METRIC_LABELS.items():
        before, after = evaluated[0][f"eval_{metric}"], evaluated[-1][f"eval_{metric}"]
        assert f"| {name} | {before:.4f} | {after:.4f} |" in text
    results = {r.metric_type: r.metric_value for r in parsed(text).data.eval_results}
    assert results["rewards/margins"] == round(evaluated[-1]["eval_rewards/margins"], 4)
    settings, config = yaml.safe_load(fenced(text, "yaml")[0]), yaml.safe_load((run / "config.yaml").read_text())
    assert {k: v for k, v in config.items() if v is not None and k not in ("model", "data", "valid_data")} | {
        "model": "checkpoint",
        "data": "pairs.jsonl",
        "valid_data": "pairs.jsonl",
        "adapter_path": run.name,
    } == settings
    assert fenced(text, "")[0] == "mlx-dpo train --model checkpoint --data pairs.jsonl --iters 6\n"
    assert "8 held-out pairs" in text and "8 rows of `pairs.jsonl`" in text and "seed 0" in text.lower()
    for package, number in record.package_versions().items():
        assert f"{package} {number}" in text
    assert "mlx_lm.generate" in text and "PeftModel" in text and "llama.cpp" in text and "LM Studio" in text


def test_curves_are_a_picture(run: Path) -> None:
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "](curves.png)" in (run / "README.md").read_text()


def test_without_matplotlib_nothing_is_said_of_curves(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    made = render_card_files(run)
    assert set(made) == {"README.md"} and b"curves" not in made["README.md"]


def as_if(run: Path, **config: Any) -> None:
    """Let the run have been made with another config, by a version that wrote no lineage.json."""
    (run / "lineage.json").unlink(missing_ok=True)
    content = json.loads((run / "training.json").read_text())
    content["config"] |= config
    content["on_hub"] = record.settings_on_hub(content["config"])
    (run / "training.json").write_text(json.dumps(content))


def test_of_a_base_and_data_on_the_hub(hub: Hub, run: Path) -> None:
    hub.store.create("models", "big/base-4bit")
    hub.store.commit("models", "big/base-4bit", "main", "card", {"README.md": BASE_CARD.encode()})
    as_if(run, model="big/base-4bit@main", data="me/prefs@main:default/train_prefs")
    text = render_card_files(run, "tester/mine", fetch_base_card=True)["README.md"].decode()
    card = parsed(text)
    card.validate()
    assert card.data.license == "llama3.2" and card.data.language == ["en", "de"]
    assert card.data.base_model == "big/base-4bit" and card.data.get("base_model_relation") == "adapter"
    assert card.data.datasets == ["me/prefs"] and card.data.eval_results[0].dataset_split == "train_prefs"
    assert "hf download tester/mine --local-dir mine" in text
    assert "mlx_lm.generate --model big/base-4bit --adapter-path mine" in text and "revision `main`" in text


def test_a_path_of_the_run_is_no_name_of_the_hub_elsewhere(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """models/mine and data/prefs were folders where the run was started; the card is written from another."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "prefs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    as_if(run, model="models/mine", data="data/prefs")
    monkeypatch.chdir("/")
    card = parsed(render_card_files(run)["README.md"].decode())
    assert card.data.base_model is None and card.data.datasets is None and "`mine`" in card.text


def test_a_base_that_can_not_be_asked_for_costs_the_license_only(hub: Hub, run: Path) -> None:
    as_if(run, model="nobody/nothing")
    card = parsed(render_card_files(run, "tester/mine", fetch_base_card=True)["README.md"].decode())
    assert card.data.base_model == "nobody/nothing" and card.data.license is None


def describe(model: Path | str) -> BaseModelInfo:
    """What a card says of a model as a base."""
    return describe_base_model(identify_model(str(model)))


def test_the_base_of_a_folder(tmp_path: Path, hub: Hub) -> None:
    snapshot = tmp_path / "hub" / "models--big--base.4bit" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    assert describe(snapshot).repo_id == "big/base.4bit"
    folder = tmp_path / "mine"
    folder.mkdir()
    assert (describe(folder).repo_id, describe(folder).display_name) == (None, "mine")
    (folder / "README.md").write_text(BASE_CARD)
    assert describe(folder).repo_id == "big/one" and describe(folder).inherited_metadata["license"] == "llama3.2"
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert describe(folder).inherited_metadata == {}
    assert describe("").display_name == "a model in memory" and not hub.requests


def test_of_a_fused_model(fused: Path) -> None:
    text = (fused / "README.md").read_text()
    card = parsed(text)
    assert GENERATED_MARKER in text and "An adapter merged into" in text
    assert "lora" not in card.data.tags and card.data.eval_results
    assert f"mlx_lm.generate --model USER/{fused.name}" in text and "AutoModelForCausalLM" in text
    inputs = collect_card_inputs(fused)
    on_hub = replace(inputs, base=replace(inputs.base, repo_id="big/base"), is_quantized=True)
    assert parsed(render_card(on_hub)).data.get("base_model_relation") == "finetune"
    assert "AutoModelForCausalLM" not in render_card(on_hub) and "can't read" in render_card(on_hub)
    models = [
        {"model": "base", "bits": "4", "bytes": 700, "margin": 0.0, "kept": None, "accuracy": 0.5, "kl": 0.1},
        {
            "model": "fused",
            "bits": "4: 3, 8: 1",
            "bytes": 800,
            "margin": 1.5,
            "kept": 0.97,
            "accuracy": 0.9,
            "kl": 2e-3,
        },
    ]
    fuse = {"path": "/home/me/fused", "note": "Rounded.", "models": models, "layers": {"x": 4}}
    text = render_card(replace(inputs, record={**inputs.record, "fuse": fuse}))
    assert (
        "| fused | 4: 3, 8: 1 | 800 | 1.500 | 97.0% | 90.0% | 0.002 |" in text
        and "| base | 4 | 700 | 0.000 |  | 50.0% |" in text
    )
    assert "Rounded." in text and "/home" not in text


def test_of_a_run_without_held_out_pairs_and_without_a_record(run: Path, hub: Hub) -> None:
    (run / "training.json").unlink()
    lines = [line for line in read_metrics(run) if "eval_loss" not in line]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = render_card_files(run)["README.md"].decode()
    parsed(text).validate()
    assert "not measured" in text and parsed(text).data.eval_results is None and "benchmark" not in text


def test_of_an_adapter_of_which_nothing_is_known(run: Path, hub: Hub) -> None:
    for name in ("training.json", "metrics.jsonl", "config.yaml", "README.md", "curves.png", "lineage.json"):
        (run / name).unlink()
    text = write_card(run).read_text()
    parsed(text).validate()
    assert "not recorded" in text


def test_somebody_elses_card_stays(run: Path) -> None:
    card = run / "README.md"
    for own in ("# Mine\n", "---\nlicense: mit\n---\n# Mine\n", card.read_text().replace(GENERATED_MARKER, "")):
        card.write_text(own)
        assert render_card_files(run) == {} and write_card(run).read_text() == own
    card.write_text("---\nlicense: mit\nlibrary_name: mlx\n---\n")  # what mlx-lm leaves: the base's metadata
    assert GENERATED_MARKER in write_card(run).read_text()


def test_a_card_can_not_be_broken_by_what_is_in_it(hub: Hub, run: Path) -> None:
    as_if(
        run,
        data="a `b` ``` ---\n---\nlicense: mit",
        loss="```x```",
        reference="```\n# Heading",
        model="weird: [name] & 'x'\n---\n# Injected",
    )
    text = render_card_files(run)["README.md"].decode()
    card = parsed(text)
    card.validate()
    assert card.data.license is None and card.data.library_name == "mlx"
    assert "\n# Injected" not in card.text and "\n# Heading" not in card.text.split("## Training")[0]


def test_no_secret_in_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITE)
    content = json.loads((run / "training.json").read_text())
    content["command"] += ["--data", f"https://me:{WRITE}@host/x", "--note", WRITE]
    (run / "training.json").write_text(json.dumps(content))
    text = render_card_files(run)["README.md"].decode()
    assert WRITE not in text and "//me" not in text and "--note hf_***" in text


def test_what_falls_is_said(run: Path) -> None:
    inputs: CardInputs = collect_card_inputs(run)
    after = {**inputs.record["after"], "logps/chosen": inputs.record["before"]["logps/chosen"] - 7.25}
    assert "fell by 7.2" in render_card(replace(inputs, record={**inputs.record, "after": after}))
    assert "less likely" not in render_card(replace(inputs, record={**inputs.record, "after": inputs.record["before"]}))
    assert describe(CHECKPOINT).display_name == "checkpoint"


def test_the_commands_it_names_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlx_dpo: Callable[..., CommandResult]
) -> None:
    """Where the repository is downloaded as the card says, and the base stands where it says."""
    base = Path(shutil.copytree(CHECKPOINT, tmp_path / "PATH" / "TO" / CHECKPOINT.name))
    monkeypatch.chdir(tmp_path)
    section = (run / "README.md").read_text().split("## Usage")[1]
    commands = [line for line in section.splitlines() if line.startswith("mlx-dpo ")]
    assert [command.split()[1] for command in commands] == ["fuse", "export", "export"] and base.is_dir()
    for command in commands:
        ran = mlx_dpo(*shlex.split(command, comments=True)[1:])
        assert ran.code == 0, (command, ran.err)
    assert {p.name for p in tmp_path.iterdir()} >= {"polite-fused", "polite.gguf", "polite-peft"}
