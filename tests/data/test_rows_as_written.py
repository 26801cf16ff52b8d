"""Rows as people have them: nothing is lost without a warning, and nothing whose meaning is clear is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_dpo.data.examples import Completion, Pair
from mlx_dpo.data.row_parsing import parse_examples, parse_pairs
from mlx_dpo.errors import RowError, Where

AT = Where("rows.jsonl", 7)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def chat(*prompt: dict[str, Any], chosen: str = "A.", rejected: str = "B.") -> Pair:
    return Pair(list(prompt), [assistant(chosen)], [assistant(rejected)])


def parted(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "value": text}]}


SYSTEM = {"role": "system", "content": "S"}
EARLIER = [user("First?"), assistant("One.")]
OK = {"prompt": "q", "chosen": "A.", "rejected": "B."}

ROWS: dict[str, tuple[dict[str, Any], list[Pair]]] = {
    "the conversation ends in the chosen answer": (
        {"conversations": [human("q"), gpt("A.")], "chosen": "A.", "rejected": "B."},
        [chat(user("q"))],
    ),
    "the prompt ends in the chosen answer": (
        {"prompt": [user("q"), assistant("A. ")], "chosen": [assistant("A.")], "rejected": [assistant("B.")]},
        [chat(user("q"))],
    ),
    "the conversation ends in an empty turn": (
        {"conversations": [human("q"), gpt("")], "chosen": "A.", "rejected": "B."},
        [chat(user("q"))],
    ),
    "the answers continue the prompt": (
        {"prompt": [user("q"), assistant("Well,")], "chosen": "A.", "rejected": "B."},
        [chat(user("q"), assistant("Well,"))],
    ),
    "history and system_prompt": (
        {
            "instruction": "Second?",
            "history": [["First?", "One."]],
            "system_prompt": "S",
            "chosen": "A.",
            "rejected": "B.",
        },
        [chat(SYSTEM, *EARLIER, user("Second?"))],
    ),
    "MedicalGPT": (
        {"system": "", "history": [], "question": "q", "response_chosen": "A.", "response_rejected": "B."},
        [Pair("q", "A.", "B.")],
    ),
    "history of messages": ({**OK, "prompt": "Second?", "history": EARLIER}, [chat(*EARLIER, user("Second?"))]),
    "messages as JSON": (
        {
            "prompt": json.dumps([user("q")]),
            "chosen": json.dumps([assistant("A.")]),
            "rejected": json.dumps(assistant("B.")),
        },
        [chat(user("q"))],
    ),
    "messages as Python's repr": (
        {"chosen": repr([user("q"), assistant("A.")]), "rejected": repr([user("q"), assistant("B.")])},
        [chat(user("q"))],
    ),
    "answers that are data": (
        {"prompt": "q", "chosen": '[{"role": "admin", "content": 1}]', "rejected": '{"value": [1]}'},
        [Pair("q", '[{"role": "admin", "content": 1}]', '{"value": [1]}')],
    ),
    "several rejected": ({**OK, "rejected": ["B.", "C."]}, [Pair("q", "A.", "B."), Pair("q", "A.", "C.")]),
    "lists of one": ({"prompt": "q", "chosen": ["A."], "rejected": ["B."]}, [Pair("q", "A.", "B.")]),
    "lists of messages": (
        {"prompt": [user("q")], "chosen": assistant("A."), "rejected": [[assistant("B.")], [assistant("C.")]]},
        [chat(user("q")), chat(user("q"), rejected="C.")],
    ),
    "rejected_response beside messages": (
        {"messages": [user("q"), assistant("A.")], "rejected_response": "B."},
        [chat(user("q"))],
    ),
    "several rejected_responses": (
        {"messages": [*EARLIER, user("q"), assistant("A.")], "rejected_response": ["B.", "C."]},
        [chat(*EARLIER, user("q")), chat(*EARLIER, user("q"), rejected="C.")],
    ),
    "rejected_messages": (
        {"messages": [user("q"), assistant("A.")], "rejected_messages": [user("q"), assistant("B.")]},
        [chat(user("q"))],
    ),
    "ms-swift's query": (
        {"query": "q", "response": "A.", "rejected_response": "B.", "history": [["First?", "One."]]},
        [chat(*EARLIER, user("q"))],
    ),
    "Alpaca's output": ({"instruction": "q", "input": "", "output": "A.", "rejected": "B."}, [Pair("q", "A.", "B.")]),
    "LLaMA-Factory's version 1": (
        {
            "chosen_messages": [parted("user", "q"), parted("assistant", "A.")],
            "rejected_messages": [parted("user", "q"), parted("assistant", "B.")],
        },
        [chat(user("q"))],
    ),
    "system as a message": ({**OK, "system": [SYSTEM]}, [chat(SYSTEM, user("q"))]),
    "template arguments as JSON": (
        {**OK, "chat_template_kwargs": '{"enable_thinking": false}'},
        [Pair("q", "A.", "B.", None, {"enable_thinking": False})],
    ),
    "turns with a rejected answer": (
        {
            "messages": [
                SYSTEM,
                user("q"),
                assistant("A.", rejected="B."),
                user("r"),
                assistant("C."),
                user("s"),
                assistant("D.", rejected=["E.", "F."]),
            ]
        },
        [
            chat(SYSTEM, user("q")),
            *(
                chat(
                    SYSTEM, user("q"), assistant("A."), user("r"), assistant("C."), user("s"), chosen="D.", rejected=bad
                )
                for bad in ("E.", "F.")
            ),
        ],
    ),
    "ShareGPT's turns with a rejected answer": (
        {"conversations": [human("q"), {**gpt("A."), "rejected": "B."}], "system": "S"},
        [chat(SYSTEM, user("q"))],
    ),
    "PandaLM": (
        {"instruction": "q", "input": "i", "response1": "B.", "response2": "A.", "label": 2, "cmp_key": "x"},
        [Pair("q\ni", "A.", "B.")],
    ),
    "PandaLM, the first": (
        {"instruction": "q", "response1": "A.", "response2": "B.", "label": 1},
        [Pair("q", "A.", "B.")],
    ),
    "PandaLM, a tie": ({"instruction": "q", "response1": "A.", "response2": "B.", "label": 0}, []),
    "Auto-J": ({"prompt": "q", "response 1": "A.", "response 2": "B.", "label": 0}, [Pair("q", "A.", "B.")]),
    "Auto-J, the second": (
        {"prompt": "q", "response 1": "B.", "response 2": "A.", "label": 1},
        [Pair("q", "A.", "B.")],
    ),
    "Auto-J, a tie": ({"prompt": "q", "response 1": "B.", "response 2": "A.", "label": 2}, []),
    "TL;DR comparison": (
        {
            **{"info": {"id": "t3", "post": "p", "title": "t", "subreddit": "s"}, "split": "train", "choice": 1},
            **{"summaries": [{"text": " B.", "policy": "sup1", "note": "n"}, {"text": " A.", "policy": "ref"}]},
            **{"worker": "w", "batch": "batch3", "extra": {"confidence": 8}},
        },
        [Pair("SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: p\n\nTL;DR:", " A.", " B.")],
    ),
    "CNN/DM comparison, from parquet": (
        {
            "info": {"id": "i", "post": None, "title": "t", "subreddit": None, "site": "cnn", "article": "a"},
            **{"summaries": [{"text": "A."}, {"text": "B."}], "choice": 0, "extra": {"confidence": None}},
        },
        [Pair("Article: a\n\nTL;DR:", "A.", "B.")],
    ),
    "distilabel": (
        {"instruction": "q", "generations": ["B.", "A.", "C.", None], "ratings": [2, 5.0, None, 4]},
        [Pair("q", "A.", "B.")],
    ),
    "distilabel, none rated": ({"prompt": "q", "generations": ["B.", "A."], "ratings": [None, 3]}, []),
    "Capybara binarized": (
        {
            **{"source": "s", "conversation": [{"input": "q", "output": "A."}], "prompt": "q", "rating_chosen": 5},
            **{"chosen": [user("q"), assistant("A.")], "rejected": [user("q"), assistant("B.")], "rating_rejected": 4},
        },
        [chat(user("q"))],
    ),
    "Skywork": (
        {"chosen": [user("q"), assistant("A.")], "rejected": [user("q"), assistant("B.")], "source": "s"},
        [chat(user("q"))],
    ),
    "no image": ({**OK, "images": [], "image": None}, [Pair("q", "A.", "B.")]),
    "scores as texts": (
        {"prompt": "q", "completions": '["B.", "A."]', "scores": "[1, 2]"},
        [Pair("q", "A.", "B.")],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_clear_row_is_read(name: str) -> None:
    row, pairs = ROWS[name]
    before = json.dumps(row)
    assert parse_pairs(row, AT) == pairs
    assert json.dumps(row) == before, "the row was changed"


def test_scores_beside_chosen_and_rejected() -> None:
    (pair,) = parse_pairs(ROWS["Capybara binarized"][0], AT)
    assert pair.scores == (5, 4)


SINGLES: dict[str, tuple[dict[str, Any], Completion]] = {
    "label as text": ({"prompt": "q", "completion": "A.", "label": "True"}, Completion("q", "A.", True)),
    "label as a float": ({"prompt": "q", "completion": "A.", "label": 0.0}, Completion("q", "A.", False)),
    "kto_tag": ({"instruction": "q", "output": "A.", "kto_tag": False}, Completion("q", "A.", False)),
    "response": ({"query": "q", "response": "A."}, Completion("q", "A.")),
    "LLaMA-Factory's KTO": (
        {"messages": [user("q"), assistant("A.")], "label": True},
        Completion([user("q")], [assistant("A.")], True),
    ),
    "Capybara": (
        {"conversation": [{"input": "First?", "output": "One."}, {"input": "q", "output": "A."}]},
        Completion([*EARLIER, user("q")], [assistant("A.")]),
    ),
}


@pytest.mark.parametrize("name", SINGLES)
def test_a_clear_completion_is_read(name: str) -> None:
    row, completion = SINGLES[name]
    assert parse_examples(row, AT) == [completion]


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "conversation ends in another answer": (
        {"conversations": [human("q"), gpt("Z.")], "chosen": "A.", "rejected": "B."},
        "roles",
        r"`conversations\[1\]`: ends with a turn of the assistant that is neither answer\nLeave that turn out",
    ),
    "messages as numpy prints them": (
        {**OK, "prompt": "[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'A.'}]"},
        "messages as text",
        "`prompt`: is text that begins like a list of messages",
    ),
    "messages cut off": ({**OK, "chosen": '[{"role": "assistant", "content": "A'}, "messages as text", "`chosen`"),
    "history of texts": ({**OK, "history": ["First?"]}, "history", r"`history\[0\]`: must be a pair of strings"),
    "rejected beside the user": (
        {"messages": [{**user("q"), "rejected": "B."}, assistant("A.")]},
        "roles",
        "not an alternative",
    ),
    "rejected beside the first turn": ({"messages": [assistant("A.", rejected="B.")]}, "roles", "not an alternative"),
    "LLaVA": (
        {"id": 1, "image": "a.jpg", "conversations": [human("<image>\nq")], "chosen": "A.", "rejected": "B."},
        "media",
        "`image`: the row has image, and only text can be trained on",
    ),
    "an image part": (
        {**OK, "prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "content",
        "is image_url, not text",
    ),
    "user turns that differ by a space": (
        {"prompt": "q?", "chosen": [user("q?"), assistant("A.")], "rejected": [user("q? "), assistant("B.")]},
        "roles",
        "differs from character 3 on: 'q\\?' in chosen, 'q\\? ' in rejected",
    ),
    "a prompt that differs by a space": (
        {"prompt": [user("q?")], "chosen": [user("q?"), assistant("A.")], "rejected": [user("q? "), assistant("B.")]},
        "roles",
        "`rejected`: .*\n.*'q\\?' in prompt, 'q\\? ' in rejected",
    ),
    "other names": ({"question": "q", "response_j": "A.", "response_k": "B."}, "unknown shape", "--chosen-column"),
    "other names inside an object": ({"data": {"pos_answer": "A."}}, "unknown shape", r"as data\.pos_answer"),
    "thumbs": ({"prompt": "q", "completion": "A.", "thumbs": 1}, "unpaired", "--chosen-column"),
    "system of two turns": (
        {**OK, "system": [SYSTEM, user("q")]},
        "type",
        "`system`: must be text, or one system message",
    ),
    "label of three": ({"prompt": "q", "completion": "A.", "kto_tag": 3}, "unpaired", "not a pair"),
    "distilabel, too few ratings": (
        {"prompt": "q", "generations": ["A.", "B."], "ratings": [1]},
        "completions",
        "1 ratings",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_is_not_clear_is_refused_with_what_to_do(name: str) -> None:
    row, kind, message = REFUSED[name]
    with pytest.raises(RowError, match=message) as raised:
        parse_pairs(row, AT)
    assert raised.value.kind == kind and raised.value.where == AT
