"""What goes to the Hub, and what never does unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mlx_dpo.errors import UserError
from mlx_dpo.export.folder_kind import detect_folder_kind
from mlx_dpo.export.local_paths import shareable_content, strip_local_path
from mlx_dpo.export.push.upload_files import UploadFile, select_upload_files
from tests.conftest import CHECKPOINT, PAIRS
from tests.hub.server import WRITE

OF_A_RUN = ["README.md", "adapter_config.json", "adapters.safetensors", "config.yaml", "lineage.json"]
OF_A_MODEL = ["README.md", "config.json", "lineage.json", "model.safetensors", "model.safetensors.index.json"]
CURVES = ["curves.png"]
# What lies about in such folders, and is nobody else's business.
LEFT_BEHIND = """
    train.jsonl valid.jsonl pairs.jsonl.gz data.parquet metrics.jsonl training.json report.html train.log nohup.out
    optimizer.safetensors references.safetensors 0000100_adapters.safetensors .env .netrc token id_rsa notes.txt run.py
    events.out.tfevents.1 wandb/run-1/files/config.yaml runs/events.out checkpoints/0000100/adapters.safetensors
    checkpoints/0000100/progress.json .git/config .cache/huggingface/token __pycache__/a.pyc data/train.jsonl
    .adapters.safetensors.partial README.md.bak secrets.json .ipynb_checkpoints/x.ipynb model.safetensors.tmp
    adapters/adapters.safetensors skipped.jsonl best.json .lock faults.jsonl
"""


def clutter(folder: Path) -> None:
    for name in LEFT_BEHIND.split():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text("not for others")


def paths(files: list[UploadFile]) -> list[str]:
    return [file.path for file in files]


def test_of_a_run(run: Path) -> None:
    clutter(run)
    assert detect_folder_kind(run) == "adapter"
    assert paths(select_upload_files(run)) == sorted(OF_A_RUN + CURVES)


def test_of_a_model(fused: Path) -> None:
    before = {p.name for p in fused.iterdir()}
    clutter(fused)
    uploaded = set(paths(select_upload_files(fused)))
    assert uploaded == before - {"training.json"}
    assert uploaded >= {*OF_A_MODEL, "tokenizer.json", "tokenizer_config.json"}


def test_of_a_peft_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/home/me/base"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    clutter(tmp_path)
    files = select_upload_files(tmp_path)
    assert paths(files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads(files[0].content)["base_model_name_or_path"] == "base"


def test_code_that_the_config_names_goes_and_no_other(fused: Path) -> None:
    config = json.loads((fused / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_mine.Mine", "AutoConfig": "u/x--config_mine.Mine", "Y": "../../etc.Z"}
    (fused / "config.json").write_text(json.dumps(config))
    for name in ("modeling_mine.py", "config_mine.py", "other.py"):
        (fused / name).write_text("")
    assert {p for p in paths(select_upload_files(fused)) if p.endswith(".py")} == {"modeling_mine.py", "config_mine.py"}


def test_more_where_it_is_asked_for(run: Path) -> None:
    clutter(run)
    more = select_upload_files(run, ["metrics.jsonl", "checkpoints/*"])
    added = set(paths(more)) - {*OF_A_RUN, *CURVES}
    assert "metrics.jsonl" in added and "checkpoints/0000003/optimizer.safetensors" in added
    assert all(path == "metrics.jsonl" or path.startswith("checkpoints/") for path in added)
    everything = paths(select_upload_files(run, ["*"]))
    assert "train.jsonl" in everything and not any(part.startswith(".") for p in everything for part in p.split("/"))
    with pytest.raises(UserError, match="no file matches"):
        select_upload_files(run, ["nothing-*"])


def test_a_lineage_of_another_program_stays(run: Path) -> None:
    (run / "lineage.json").write_text('{"format": "other"}')
    assert "lineage.json" not in paths(select_upload_files(run))


def test_nothing_through_links_to_other_folders(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "private.txt").write_text("")
    (run / "link").symlink_to(tmp_path / "elsewhere")
    assert not any("private" in path for path in paths(select_upload_files(run, ["*"])))


def test_places_on_this_machine_stay(run: Path, fused: Path) -> None:
    for folder in (run, fused):
        for file in select_upload_files(folder):
            content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
            assert str(Path(__file__).parent.parent).encode() not in content, file.path
            assert b"/tmp" not in content, file.path
    sent = {file.path: file.content for file in select_upload_files(run)}
    config = yaml.safe_load(sent["config.yaml"])
    assert (config["model"], config["data"]) == (CHECKPOINT.name, PAIRS.name)
    assert json.loads(sent["adapter_config.json"])["model"] == CHECKPOINT.name
    assert str(CHECKPOINT) in (run / "config.yaml").read_text()  # here it stays as it was


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("user/name@main:train", "user/name@main:train"),
        ("/home/me/pairs.jsonl", "pairs.jsonl"),
        ("~/secret project/pairs.jsonl", "pairs.jsonl"),
        ("../client/pairs.jsonl", "pairs.jsonl"),
        ("--data=/home/me/pairs.jsonl", "--data=pairs.jsonl"),
        ("sigmoid=1,/home/me/mine.py:loss", "sigmoid=1,mine.py:loss"),
        ("sigmoid=0.8,sft=1", "sigmoid=0.8,sft=1"),
        ("2e-5", "2e-5"),
        ("x" * 5000, "x" * 5000),
    ],
)
def test_shown_place(typed: str, shown: str) -> None:
    assert strip_local_path(typed) == shown


@pytest.mark.parametrize("name", ["README.md", "config.yaml", "chat_template.jinja"])
def test_a_token_in_a_file_stops_it(name: str, fused: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run if name == "config.yaml" else fused
    secrets = [WRITE, "hf_AnotherTokenOfSomebodyElse1234567890", "https://me:password@host/x"]
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    original = (folder / name).read_text()
    for secret in [*secrets, "a-token-of-no-known-form"]:
        (folder / name).write_text(
            f"{original}\n# {secret}\n" if name != "config.yaml" else f"{original}note: {secret}\n"
        )
        with pytest.raises(UserError, match="contains a token or a password") as raised:
            select_upload_files(folder)
        assert raised.value.where and raised.value.where.file == name and secret not in str(raised.value)
    (folder / name).write_text(original)
    select_upload_files(folder)


def test_neither_adapter_nor_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing", PAIRS):
        with pytest.raises(UserError, match="neither an adapter nor a model"):
            detect_folder_kind(folder)


def test_a_config_that_is_none(run: Path) -> None:
    (run / "config.yaml").write_text("model: [")
    with pytest.raises(UserError, match="can't be read"):
        select_upload_files(run)


def test_shareable_leaves_weights_alone(run: Path) -> None:
    assert shareable_content(run / "adapters.safetensors") == run / "adapters.safetensors"
