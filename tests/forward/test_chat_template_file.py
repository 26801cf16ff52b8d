"""A chat template that only chat_template.json has is used, said, and kept by a fused model."""

from __future__ import annotations

import json
from pathlib import Path

import mlx_lm
import pytest

from mlx_dpo import UserError, train
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
from mlx_dpo.export.push.upload_files import select_upload_files
from mlx_dpo.forward.model_loading import chat_template_note, load_tokenizer
from tests.conftest import CHECKPOINT, TRL
from tests.training.test_resume import Notes
from tests.training.test_run import config

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def moved(checkpoint: Path) -> Path:
    """The tiny model with its template in chat_template.json alone."""
    file = checkpoint / "tokenizer_config.json"
    values = json.loads(file.read_text())
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": values.pop("chat_template")}))
    file.write_text(json.dumps(values))
    return checkpoint


def test_it_is_read_and_carried_along(moved: Path, tmp_path: Path) -> None:
    expected = load_tokenizer(str(CHECKPOINT)).apply_chat_template(MESSAGES, return_dict=False)
    tokenizer = load_tokenizer(str(moved))
    assert tokenizer.has_chat_template and tokenizer.apply_chat_template(MESSAGES, return_dict=False) == expected
    tokenizer.save_pretrained(tmp_path / "saved")  # as a fused model is written
    (tmp_path / "saved" / "config.json").write_text((moved / "config.json").read_text())
    saved = mlx_lm.utils.load_tokenizer(tmp_path / "saved")
    assert saved.apply_chat_template(MESSAGES, return_dict=False) == expected


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize(
    "source", ["folder", "tokenizer_config.json", "chat_template.json", "chat_template.json, folder"]
)
def test_named_templates_are_carried_along(checkpoint: Path, tmp_path: Path, source: str) -> None:
    """Fused and pushed, plain mlx-lm has both: the default, and the one for tools."""
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    default = config.pop("chat_template")
    named = [{"name": "default", "template": default}, {"name": "tool_use", "template": "{{ 'with tools' }}"}]
    if source == "tokenizer_config.json":
        config["chat_template"] = named
    if source.startswith("chat_template.json"):
        template = default if "folder" in source else named
        (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    if source == "folder":
        (checkpoint / "chat_template.jinja").write_text(default)
    if "folder" in source:
        (checkpoint / "additional_chat_templates").mkdir()
        (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text(named[1]["template"])
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    fuse_adapter(str(checkpoint), TRL / "adapter", tmp_path / "fused")
    for file in select_upload_files(tmp_path / "fused"):
        target = tmp_path / "pushed" / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content if isinstance(file.content, bytes) else file.content.read_bytes())
    expected = load_tokenizer(str(CHECKPOINT)).apply_chat_template(MESSAGES, tokenize=False)
    _, tokenizer = mlx_lm.load(str(tmp_path / "pushed"))
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == expected
    assert tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, tokenize=False) == "with tools"


def test_templates_behind_a_link_to_another_folder_are_not_pushed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "private.jinja").write_text("x")
    (checkpoint / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    assert not any("private" in file.path for file in select_upload_files(checkpoint))


def test_training_notes_it(moved: Path, tmp_path: Path) -> None:
    notes = Notes()
    train(config(tmp_path / "run", model=str(moved), iters=1), listener=notes)
    assert [note for note in notes.notes if "chat_template.json, which mlx-lm does not read" in note]


def test_a_template_that_tokenizers_read_comes_first(moved: Path) -> None:
    (moved / "chat_template.jinja").write_text("{{ 'own' }}")
    assert chat_template_note(str(moved)) is None
    assert load_tokenizer(str(moved)).chat_template == "{{ 'own' }}"
    assert chat_template_note(str(CHECKPOINT)) is None


def test_a_damaged_file_is_named(moved: Path) -> None:
    (moved / "chat_template.json").write_text("{")
    with pytest.raises(UserError, match=r"chat_template.json: not valid JSON"):
        load_tokenizer(str(moved))
