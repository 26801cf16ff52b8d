"""Files of prompts: any prompt is enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.data.candidate_rows import parse_candidates
from mlx_dpo.data.examples import Prompt
from mlx_dpo.data.prompt_files import parse_prompt, read_prompts
from mlx_dpo.errors import RowError, UserError
from tests.conftest import write_rows
from tests.data.test_rows_as_written import AT, OK, SYSTEM, assistant, gpt, human, user

PROMPTS: dict[str, tuple[dict[str, Any], Any]] = {
    "messages under prompt": ({"prompt": [user("q")]}, [user("q")]),
    "messages": ({"messages": [SYSTEM, user("q")]}, [SYSTEM, user("q")]),
    "answered messages": ({"messages": [user("q"), assistant("A.")]}, [user("q")]),
    "conversations": ({"conversations": [human("q"), gpt("")]}, [user("q")]),
    "question": ({"question": "q", "id": "x"}, "q"),
    "instruction": ({"instruction": "q", "input": "i"}, "q\ni"),
    "with a system prompt": ({"query": "q", "system": "S"}, [SYSTEM, user("q")]),
    "HH": ({"prompt": "\n\nHuman: q\n\nAssistant:"}, [user("q")]),
    "a tie": ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 1]}, "q"),
    "completions alone": ({"prompt": "q", "completions": ["a", "b"]}, "q"),
    "an empty answer": ({**OK, "rejected": ""}, "q"),
    "as JSON": ({"prompt": json.dumps([user("q")])}, [user("q")]),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_any_prompt_is_enough(name: str) -> None:
    row, expected = PROMPTS[name]
    prompt = parse_prompt({**row, "tools": [{"name": "f"}], "chat_template_kwargs": {"x": 1}}, AT)
    assert (prompt.prompt, prompt.tools, prompt.template_kwargs) == (expected, [{"name": "f"}], {"x": 1})
    assert prompt.is_hh_dialogue == (name == "HH")


@pytest.mark.parametrize("row", [{}, {"chosen": "A."}, [1], {"prompt": ""}, {"prompt": 3}, {"prompt": [user("")]}])
def test_a_row_without_a_prompt(row: Any) -> None:
    with pytest.raises(RowError) as raised:
        parse_prompt(row, AT)
    assert raised.value.where == AT


def test_files_of_prompts(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [{"prompt": "q"}, OK])
    assert [prompt.prompt for prompt in read_prompts(str(rows))] == ["q", "q"]
    (tmp_path / "a.csv").write_text("question,note\nq,n\n")
    assert read_prompts(str(tmp_path / "a.csv")) == [Prompt("q")]
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(str(write_rows(tmp_path / "b.jsonl", [])))


def test_scoring_takes_a_text_beside_several() -> None:
    (one,) = parse_candidates({**OK, "rejected": ["B.", "C."]}, AT)
    assert one.completions == ("A.", "B.", "C.")
