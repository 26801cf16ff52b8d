"""Modelfiles: chat templates as Go templates, rendered by Go (recorded) and by Jinja; the commands that write them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from mlx_dpo.export.ollama.modelfile import modelfile_text
from mlx_dpo.export.ollama.template_inference import infer_turn_format
from mlx_dpo.export.ollama.turn_format import SystemPlace
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, TRL
from tests.data.chat_templates import CHATML, GEMMA, LLAMA3, Family
from tests.export.go_renderings import (
    ALL_FAMILIES,
    BRACES,
    CONVERSATIONS,
    RECORD,
    messages_of,
    render_with_go,
    wrapped_tokenizer,
    written_templates,
)

Cli = Callable[..., CommandResult]
NUMBERED = Family("{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}")


def recorded() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))["families"]


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Instructions and arguments, as Ollama's parser reads them: a value in three quotes may have several lines."""
    pattern = re.compile(r'#[^\n]*\n|(?P<name>[A-Z]+) (?:"""(?P<quoted>.*?)"""(?=\s)|(?P<plain>[^\n]*))\n', re.DOTALL)
    found, end = [], 0
    for match in pattern.finditer(text):
        assert match.start() == end, text[end:]
        end = match.end()
        if match["name"]:
            found.append((match["name"], match["plain"] if match["quoted"] is None else match["quoted"]))
    assert end == len(text)
    return found


def template_of(family: Family) -> str:
    text, _ = modelfile_text("m.gguf", wrapped_tokenizer(family))
    return dict(read_modelfile(text)).get("TEMPLATE", "")


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_go_renders_what_jinja_renders(name: str) -> None:
    tokenizer, record = wrapped_tokenizer(ALL_FAMILIES[name]), recorded()[name]
    turn_format = infer_turn_format(tokenizer)
    assert turn_format is not None
    for conversation in CONVERSATIONS:
        messages = messages_of(conversation)
        if turn_format.system is None:
            messages = [message for message in messages if message["role"] != "system"]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert record["texts"][conversation] == expected, conversation


def test_the_record_is_of_the_templates_that_are_written() -> None:
    assert {name: family["template"] for name, family in recorded().items()} == written_templates()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed; its renderings are recorded")
def test_go_itself() -> None:
    families = recorded()
    assert render_with_go(written_templates()) == {name: family["texts"] for name, family in families.items()}


@pytest.mark.parametrize(("name", "place"), [
    ("chatml", SystemPlace.OWN_TURN),
    ("llama2", SystemPlace.FIRST_USER),
    ("gemma3", SystemPlace.FIRST_USER),
    ("mistral3", SystemPlace.LAST_USER),
])  # fmt: skip
def test_where_the_system_message_is(name: str, place: SystemPlace) -> None:
    turn_format = infer_turn_format(wrapped_tokenizer(ALL_FAMILIES[name]))
    assert turn_format is not None and turn_format.system is not None and turn_format.system_place is place


# Modelfiles


def test_a_modelfile() -> None:
    text, notes = modelfile_text("mine.gguf", wrapped_tokenizer(CHATML))
    instructions = read_modelfile(text)
    assert instructions[0] == ("FROM", "./mine.gguf") and not notes
    assert instructions[2:] == [("PARAMETER", 'stop "<|im_end|>"')]
    assert dict(instructions)["TEMPLATE"] == recorded()["chatml"]["template"]


def test_the_start_token_that_llama_cpp_adds_is_left_out() -> None:
    """llama.cpp puts it in front if the tokenizer does, and the chat template would put a second one there."""
    tokenizer = wrapped_tokenizer(LLAMA3)
    assert recorded()["llama3"]["template"].count("<|begin_of_text|>") == 2
    assert dict(read_modelfile(modelfile_text("m.gguf", tokenizer)[0]))["TEMPLATE"].count("<|begin_of_text|>") == 2
    start = ("<|begin_of_text|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|begin_of_text|> $A", special_tokens=[start])
    template = dict(read_modelfile(modelfile_text("m.gguf", tokenizer)[0]))["TEMPLATE"]
    assert "<|begin_of_text|>" not in template
    assert template.startswith("{{ if .System }}<|start_header_id|>system")


def test_an_unknown_template_is_left_to_ollama_with_a_comment() -> None:
    text, (note,) = modelfile_text("m.gguf", wrapped_tokenizer(NUMBERED))
    assert [name for name, _ in read_modelfile(text)] == ["FROM", "PARAMETER"]
    assert "can't be written as Ollama's TEMPLATE" in note and f"# Note: {note}" in text


def test_a_template_that_stops_is_unknown() -> None:
    assert not template_of(Family("{% for m in messages %}{{ m.role }}{% endfor %}")), "the texts are left out"
    assert not template_of(Family("{{ raise_exception('never') }}"))
    assert not template_of(Family("{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}x"))


def test_a_template_that_depends_on_a_text_is_unknown() -> None:
    condition = "{% if '\n' in m.content %}long{% endif %}"
    assert template_of(CHATML) and not template_of(
        replace(CHATML, template=CHATML.template.replace("{{ m.content }}", condition + "{{ m.content }}"))
    )


def test_notes_on_system_messages_and_dates() -> None:
    _, (note,) = modelfile_text("m.gguf", wrapped_tokenizer(GEMMA))
    assert "no system message" in note
    dated = "Today: {{ strftime_now('%d %b %Y') }}\n" + CHATML.template
    text, (note,) = modelfile_text("m.gguf", wrapped_tokenizer(replace(CHATML, template=dated)))
    assert "date" in note and "Today: " in text
    _, (note,) = modelfile_text("m.gguf", wrapped_tokenizer(Family(None)))  # type: ignore[arg-type]
    assert "no chat template" in note


def test_texts_that_would_end_the_value_are_quoted() -> None:
    assert template_of(BRACES) == recorded()["braces"]["template"]


# Commands


def test_export_writes_one_beside_the_gguf_file(mlx_dpo: Cli, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "tiny.gguf"
    ran = mlx_dpo("export", "--format", "gguf", "--model", CHECKPOINT, file)
    assert ran.code == 0 and f"ollama create tiny -f {tmp_path}/deep/tiny.Modelfile" in ran.out
    instructions = read_modelfile((tmp_path / "deep" / "tiny.Modelfile").read_text())
    assert instructions[0] == ("FROM", "./tiny.gguf") and "TEMPLATE" in dict(instructions)
    ran = mlx_dpo("export", "--format", "gguf", "--model", CHECKPOINT, tmp_path / "other.gguf", "--json")
    output = json.loads(ran.out)
    assert output["modelfile"] == str(tmp_path / "other.Modelfile") and output["modelfile_notes"] == []


def test_a_modelfile_that_is_there_stays(mlx_dpo: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.Modelfile").write_text("mine")
    adapter = ("--adapter-path", TRL / "adapter", "--model", CHECKPOINT, "--save-path", tmp_path / "fused")
    for command in (
        ("export", "--format", "gguf", "--model", CHECKPOINT, tmp_path / "tiny.gguf"),
        ("fuse", *adapter, "--bits", "same", "--gguf", tmp_path / "tiny.gguf"),
    ):
        ran = mlx_dpo(*command)
        assert ran.code == 2 and "tiny.Modelfile" in ran.err and "exists already" in ran.err
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.Modelfile"], "nothing was written"


def test_fuse_writes_one_too(mlx_dpo: Cli, tmp_path: Path) -> None:
    gguf = tmp_path / "fused.gguf"
    flags = ("--adapter-path", TRL / "adapter", "--model", CHECKPOINT, "--save-path", tmp_path / "fused")
    ran = mlx_dpo("fuse", *flags, "--bits", "same", "--gguf", gguf, "--json")
    output = json.loads(ran.out)
    assert output["gguf"] == str(gguf) and output["modelfile"] == str(tmp_path / "fused.Modelfile")
    assert (tmp_path / "fused.Modelfile").read_text().count("TEMPLATE") == 1
