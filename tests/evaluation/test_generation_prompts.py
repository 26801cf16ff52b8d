"""What answers are generated from is what was trained on, in every command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.cli import main
from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.evaluation.pairwise_evaluation import distinct_prompts, pairwise_evaluation
from mlx_dpo.forward.model_loading import load_tokenizer
from mlx_dpo.judges.judge import Judge
from mlx_dpo.sampling import generation
from mlx_dpo.sampling.completions import SamplingParams
from tests.conftest import CHECKPOINT, TRL, write_rows

TEMPLATE = (  # shows all that a row can give it
    "{% if tools %}TOOLS {{ tools[0].name }}\n{% endif %}{{ mood }}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEGUN = [{"role": "user", "content": "Rome?"}, {"role": "assistant", "content": "It is"}]
CHAT_ROWS: list[dict[str, Any]] = [
    {"prompt": "Rome?", "chosen": "A.", "rejected": "B.", "tools": [{"name": "look_up"}]},
    {"prompt": "Rome?", "chosen": "A.", "rejected": "B.", "chat_template_kwargs": {"mood": "glad"}},
    {"prompt": BEGUN, "chosen": " warm.", "rejected": " cold."},
    {"prompt": "Rome?", "chosen": "A.", "rejected": "B."},
]
TEXT_ROWS: list[dict[str, Any]] = [{"prompt": "Rome is", "chosen": " warm.", "rejected": " cold."}]
DIALOGUE = "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nAssistant:"
DIALOGUE_ROWS: list[dict[str, Any]] = [{"chosen": f"{DIALOGUE} good", "rejected": f"{DIALOGUE} bad"}]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The ids of prompts that answers are generated from."""
    prompts: list[tuple[int, ...]] = []

    def generate(model: Any, tokenizer: Any, ids: Any, sampling: Any) -> list[str]:
        prompts.extend(map(tuple, ids))
        return ["x"] * len(ids)

    monkeypatch.setattr(generation, "generate_from_token_ids", generate)
    return prompts


class FirstJudge(Judge):
    """Prefers the first answer."""

    name = "first"

    def verdicts(self, comparisons: Any) -> list[float | None]:
        return [1.0] * len(comparisons)


def model_with(folder: Path, template: str | None) -> str:
    tokenizer = load_tokenizer(str(folder))._tokenizer
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    for file in folder.glob("chat_template*"):
        if template is None:
            file.unlink()
    return str(folder)


CASES = {
    "chat": (TEMPLATE, CHAT_ROWS, {}),
    "template kwargs": (TEMPLATE, CHAT_ROWS, {"chat_template_kwargs": {"mood": "calm"}}),
    "raw": (TEMPLATE, TEXT_ROWS, {"raw": True}),
    "dialogues without a template": (None, DIALOGUE_ROWS, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_are_generated_from_the_prompts_of_training(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generated: list[tuple[int, ...]], case: str
) -> None:
    template, rows, settings = CASES[case]
    model, data = model_with(checkpoint, template), str(write_rows(tmp_path / "rows.jsonl", rows))
    config = TrainConfig(model=model, data=data, **settings)
    encoder, source = ExampleEncoder.from_config(config, load_tokenizer(model)), ExampleFile.open(data)
    encoded = [encoder(source[i]) for i in range(len(source))]
    trained = [example.prompt for example in encoded if example is not None]
    assert len(trained) == len(rows) == len(set(trained))

    # evaluate --generate: without and with the adapter, then two models
    sampling = SamplingParams(4)
    pairwise_evaluation(config, TRL / "adapter", source, 9, FirstJudge(), sampling)
    assert generated == trained * 2
    generated.clear()
    pairwise_evaluation(config.replace(reference=str(CHECKPOINT)), None, source, 9, FirstJudge(), sampling)
    assert generated == trained * 2
    generated.clear()

    # compare --prompts
    flags = ["--raw"] if config.raw else []
    if config.chat_template_kwargs:
        flags += ["--chat-template-kwargs", json.dumps(config.chat_template_kwargs)]
    adapter = ["--adapter-path", str(TRL / "adapter"), "--model", model]
    monkeypatch.setattr(sys, "argv", ["mlx-dpo", "compare", *adapter, "--prompts", data, "--json", *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert generated == trained * 2


def test_prompts_that_differ_in_tools_are_distinct(tmp_path: Path) -> None:
    source = ExampleFile.open(str(write_rows(tmp_path / "rows.jsonl", [*CHAT_ROWS, *CHAT_ROWS])))
    assert len(distinct_prompts(source, 99)) == len(CHAT_ROWS)
