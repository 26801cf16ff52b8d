"""Single completions: the rows they come in, what they are as tokens, and what the data commands say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlx_dpo.cli.data import app
from mlx_dpo.data.chat_encoding import EncodedExample, ExampleEncoder
from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.examples import Completion, Pair
from mlx_dpo.data.micro_batches import MicroBatch, mismatched_example, split_into_micro_batches
from mlx_dpo.data.row_parsing import parse_examples, parse_labelled_examples, parse_scored_pairs
from mlx_dpo.data.row_reading import read_rows
from mlx_dpo.errors import RowError, Where
from mlx_dpo.forward.model_loading import load_tokenizer
from tests.conftest import CHECKPOINT, PAIRS, rows_of, write_rows
from tests.data.test_records import BAD, GOOD, SYSTEM, USER

WHERE = Where("rows.jsonl", 3)

SHAPES: dict[str, tuple[dict[str, Any], Completion]] = {
    "texts": ({"prompt": "q", "completion": "good", "label": True}, Completion("q", "good", True)),
    "undesirable": ({"prompt": "q", "completion": "bad", "label": False}, Completion("q", "bad", False)),
    "a number": ({"prompt": "q", "completion": "bad", "label": 0}, Completion("q", "bad", False)),
    "without a label": ({"prompt": "q", "completion": "good"}, Completion("q", "good")),
    "null label": ({"prompt": "q", "completion": "good", "label": None}, Completion("q", "good")),
    "messages": ({"prompt": [USER], "completion": [GOOD], "label": True}, Completion([USER], [GOOD], True)),
    "system": ({"system": "be brief", "prompt": "q", "completion": "good"}, Completion([SYSTEM, USER], [GOOD])),
    "a conversation": ({"messages": [SYSTEM, USER, GOOD]}, Completion([SYSTEM, USER], [GOOD])),
    "several turns": ({"messages": [USER, BAD, USER, GOOD]}, Completion([USER, BAD, USER], [GOOD])),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
        Completion([USER], [GOOD]),
    ),
    "a whole conversation as completion": ({"completion": [USER, GOOD], "label": 1}, Completion([USER], [GOOD], True)),
    "tools": (
        {"messages": [USER, GOOD], "tools": [{"name": "f"}]},
        Completion([USER], [GOOD], None, tools=[{"name": "f"}]),
    ),
}
BAD_ROWS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "a label in words": ({"prompt": "q", "completion": "a", "label": "yes"}, "label", "label"),
    "a score as label": ({"prompt": "q", "completion": "a", "label": 0.7}, "label", "label"),
    "no prompt": ({"completion": "a", "label": True}, "missing key", "prompt"),
    "empty": ({"prompt": "q", "completion": " ", "label": True}, "empty", "completion"),
    "number": ({"prompt": "q", "completion": 3}, "type", "completion"),
    "ends with the user": ({"messages": [USER, GOOD, USER]}, "roles", "messages"),
    "only an answer": ({"messages": [GOOD]}, "no prompt", "messages"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str) -> None:
    row, expected = SHAPES[name]
    assert parse_examples(row, WHERE) == [expected]
    assert parse_examples(expected.to_row(), WHERE) == [expected]


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row(name: str) -> None:
    row, kind, field = BAD_ROWS[name]
    with pytest.raises(RowError) as raised:
        parse_examples(row, WHERE)
    assert (raised.value.kind, raised.value.field, raised.value.where) == (kind, field, WHERE)


def test_labels_and_scores_where_a_loss_asks_for_them() -> None:
    assert parse_labelled_examples({"prompt": "q", "completion": "a", "label": False}, WHERE)
    assert parse_labelled_examples({"prompt": "q", "chosen": "a", "rejected": "b"}, WHERE)
    with pytest.raises(RowError, match=r"`label`: is missing"):
        parse_labelled_examples({"messages": [USER, GOOD]}, WHERE)
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert parse_scored_pairs({**pair, "score_chosen": 3, "score_rejected": 1.5}, WHERE)[0].scores == (3, 1.5)
    assert parse_scored_pairs({"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]}, WHERE)[0].scores == (2, 1)
    for bad in (pair, {**pair, "score_chosen": 1, "score_rejected": 1}):
        with pytest.raises(RowError, match="score"):
            parse_scored_pairs(bad, WHERE)
    with pytest.raises(RowError, match="scores"):
        parse_scored_pairs({"prompt": "q", "completions": ["a", "b"], "rankings": [1, 2]}, WHERE)


def test_a_file_holds_one_kind(tmp_path: Path) -> None:
    single = {"prompt": "q", "completion": "good", "label": True}
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    file = write_rows(tmp_path / "rows.jsonl", [pair, pair, single])
    with pytest.raises(RowError, match="is a single completion, where line 1 holds a pair") as raised:
        list(read_rows(str(file)))
    assert raised.value.where == Where(str(file), 3)
    singles = write_rows(tmp_path / "singles.jsonl", [single, {**single, "label": False}])
    opened = ExampleFile.open(str(singles), parse=parse_labelled_examples)
    assert [opened[i] for i in range(2)] == [Completion("q", "good", True), Completion("q", "good", False)]
    with pytest.raises(RowError, match="is not a pair"):
        ExampleFile.open(str(singles))


def encoded(example: Pair | Completion, **options: Any) -> EncodedExample:
    encoder = ExampleEncoder(
        load_tokenizer(str(CHECKPOINT)), **{"max_length": 512, "overlong": "truncate", "raw": False} | options
    )
    found = encoder(example)
    assert found is not None
    return found


def test_a_completion_is_the_tokens_it_is_in_a_pair() -> None:
    for row in rows_of(PAIRS):
        pair = Pair(row["prompt"], row["chosen"], row["rejected"])
        whole = encoded(pair)
        for i, answer in enumerate(pair.completions):
            alone = encoded(Completion(row["prompt"], answer, i == 0))
            assert (alone.prompt, alone.completions) == (whole.prompt, (whole.completions[i],))


def test_a_mismatched_answer_is_cut_to_the_limit() -> None:
    one, other = (encoded(Completion(f"question {i}", f"the answer is {i}" * (i + 1), True)) for i in range(2))
    for limit in (len(one.prompt) + 3, 512):
        found = mismatched_example(one, other, limit)
        assert found.prompt == one.prompt
        assert found.completions == (other.completions[0][: limit - len(one.prompt)],)
    assert mismatched_example(one, other, 1).completions == (other.completions[0][:1],)


def test_micro_batches_of_single_completions() -> None:
    examples = [encoded(Completion(f"question {i % 2}", f"the answer is {i}", True)) for i in range(4)]
    micros = split_into_micro_batches(examples, lambda batch: len(batch.sequences) <= 2)
    assert [batch.completions_per_example for batch in micros] == [1, 1]
    assert sorted(i for batch in micros for i in batch.batch_indices) == [0, 1, 2, 3]
    for batch in micros:
        for i, (prompt, completion) in zip(batch.batch_indices, batch.sequences, strict=True):
            assert (prompt, (completion,)) == (examples[i].prompt, examples[i].completions)


def test_emphasis_is_of_tokens_behind_the_shorter_answer() -> None:
    batch = MicroBatch((0, 1), (((1,), (2, 3)), ((1,), (4,)), ((1,), (5, 6, 7)), ((1,), (8, 9, 3))), ld_alpha=0.25)
    emphasis = batch.token_weights
    assert emphasis is not None
    assert [list(one) for one in emphasis] == [[1, 1], [1], [1, 1, 0.25], [1, 0.25, 0.25]]


def test_the_data_commands(tmp_path: Path) -> None:
    rows = [row for row, _ in SHAPES.values()]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    survey = json.loads(CliRunner().invoke(app, ["check", str(file), "--model", str(CHECKPOINT), "--json"]).stdout)
    assert (survey["pairs"], survey["completions"], survey["problems"]) == (0, len(rows), 0)
    assert set(survey["tokens"]) == {"prompt", "completion"}
    shown = CliRunner().invoke(app, ["check", str(file)])
    assert shown.exit_code == 0 and f"{len(rows)} single completions to train on" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["show", "2", str(file), "--model", str(CHECKPOINT), "--json"]).stdout)
    assert told["completion"]["text"].startswith("bad") and "chosen" not in told
    assert "completion" in CliRunner().invoke(app, ["show", "2", str(file), "--model", str(CHECKPOINT)]).stdout
    out = tmp_path / "out.jsonl"
    assert CliRunner().invoke(app, ["convert", str(file), str(out)]).exit_code == 0
    assert [one for row in rows_of(out) for one in parse_examples(row, WHERE)] == [one for _, one in SHAPES.values()]
