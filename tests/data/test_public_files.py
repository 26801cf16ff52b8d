"""Likenesses of public files, three rows each, as they are written: how many pairs and completions they give."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.data.data_check import DataCheck

QUESTIONS = ("Why does a magnet pull iron?", "How warm is the sun?", "Who drew this?")


def sharegpt(question: str) -> dict[str, Any]:
    conversation = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": question}]
    return {
        "conversations": conversation,
        "chosen": {"from": "gpt", "value": "By its field."},
        "rejected": {"from": "gpt", "value": "No idea."},
    }


def version_1(question: str) -> dict[str, Any]:
    def turn(role: str, text: str, weight: float) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": weight}

    start = [turn("system", "Be brief.", 0.0), turn("user", question, 0.0)]
    return {
        "chosen_messages": [*start, turn("assistant", "By its field.", 1.0)],
        "rejected_messages": [*start, turn("assistant", "No idea.", 1.0)],
    }


def labelled(question: str) -> dict[str, Any]:
    messages = [{"content": question, "role": "user"}, {"content": "By its field.", "role": "assistant"}]
    return {"messages": messages, "label": len(question) % 2 == 0}


def reasoning(question: str) -> dict[str, Any]:
    def turn(role: str, **parts: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": kind, "value": text} for kind, text in parts.items()]}

    call = '{"name": "look_up", "arguments": {"topic": "magnets"}}'
    messages = [
        turn("system", text="Be brief."),
        turn("user", text=question),
        turn("assistant", reasoning="I look it up.", tool_call=call),
        turn("tool", text="[]"),
        turn("assistant", reasoning="Nothing.", text="I don't know."),
    ]
    return {"messages": messages, "tools": '[{"name": "look_up", "parameters": {}}]'}


def instruction(question: str) -> dict[str, Any]:
    answer = "By its field." if question != QUESTIONS[2] else "No idea."
    return {"instruction": question, "input": "", "output": answer, "rejected": "No idea.", "chosen": answer}


def dialogue(question: str) -> dict[str, Any]:
    start = f"\n\nHuman: {question}\n\nAssistant: Well.\n\nHuman: Go ahead.\n\nAssistant:"
    last = " By its field." if question != QUESTIONS[1] else ""
    return {"chosen": start + last, "rejected": f"{start} No idea."}


def tool_call(question: str) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": question},
        {"from": "function_call", "value": '{"name": "look_up", "arguments": {"topic": "磁铁"}}'},
        {"from": "observation", "value": "[]"},
    ]
    return {
        "conversations": turns[: 1 if question == QUESTIONS[0] else 3],
        "tools": '[{"name": "look_up", "description": "查询", "parameters": {}}]',
        "chosen": 'Action: look_up\nAction Input: {"topic": "磁铁"}\n',
        "rejected": "不知道。",
    }


def indented(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


FILES = {
    "dpo_en_demo.json": (sharegpt, indented, {"pairs": 3}),
    "v1_dpo_demo.jsonl": (version_1, lines, {"pairs": 3}),
    "kto_en_demo.json": (labelled, indented, {"completions": 3}),
    "reason_tool_use_demo.jsonl": (reasoning, lines, {"completions": 3}),
    "instruction-data-with-preference.json": (
        instruction,
        indented,
        {"pairs": 3, "unused_columns": 3, "equal_completions": 1},
    ),
    "hh.jsonl.gz": (dialogue, lambda rows: gzip.compress(lines(rows)), {"pairs": 2, "problems": 1}),
    "toolcall_dpo_zh_demo.jsonl": (tool_call, lines, {"pairs": 3}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_what_it_holds(name: str, tmp_path: Path) -> None:
    make_row, write, expected = FILES[name]
    (tmp_path / name).write_bytes(write([make_row(question) for question in QUESTIONS]))
    check = DataCheck()
    check.add_file(str(tmp_path / name))
    report = check.to_json()
    counts = {key: report[key] for key in ("pairs", "completions", "problems")}
    counts |= {key: value["count"] for key, value in report["warnings"].items()}
    assert {key: count for key, count in counts.items() if count} == expected
    assert report["rows"] == 3
