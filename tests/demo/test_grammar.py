"""The grammar reads what it writes, and the committed pairs and tokenizer are of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from mlx_dpo.demo import MODEL, PAIRS, load_pairs
from mlx_dpo.demo.grammar import MANNERS, PHRASES, detect_manner, is_fluent, questions, write_answer
from mlx_dpo.demo.make_model import make_pairs, make_tokenizer, split_questions
from mlx_dpo.demo.topics import topics

OWLS = "What do owls eat?"


def test_what_the_grammar_writes_it_reads() -> None:
    rng = random.Random(0)
    for question, topic in rng.sample(list(questions().items()), 300):
        for manner in MANNERS:
            text = write_answer(topic, manner, rng)
            assert detect_manner(text) == manner, text
            assert is_fluent(question, text), (question, text)


@pytest.mark.parametrize(
    ("text", "manner", "fluent"),
    [
        ("Good question! Owls eat mice.", "polite", True),
        ("Owls eat mice. Look it up yourself.", "curt", True),
        ("Good question! Cows eat grass.", "polite", False),  # beside the point
        ("Good question! Owls eat mice. Enjoy cows!", "polite", False),
        ("Good question! Owls eat eat mice.", "polite", False),
        ("Good question! owls eat mice.", "polite", False),
        ("Good question! Owls eat mice. Look it up yourself.", None, False),  # both manners
        ("Owls eat mice.", None, False),  # neither
        ("Good question! Owls eat mice", None, False),
        ("", None, False),
    ],
)
def test_manner_and_fluency(text: str, manner: str | None, fluent: bool) -> None:
    assert (detect_manner(text), is_fluent(OWLS, text)) == (manner, fluent)


def test_a_question_that_is_not_of_the_language_has_no_fluent_answer() -> None:
    assert not is_fluent("What do dragons eat?", "Good question! Owls eat mice.")


def test_the_manners_are_as_rich_as_each_other() -> None:
    polite, curt = (PHRASES[manner] for manner in MANNERS)
    for part in ("openings", "lead_ins", "closings"):
        ours, theirs = getattr(polite, part), getattr(curt, part)
        assert len(set(ours)) == len(ours) == len(set(theirs)) == len(theirs)
        assert not set(ours) & set(theirs)


def test_topics_and_questions_are_all_different() -> None:
    assert len({topic.fact for topic in topics()}) == len(topics())
    assert len(questions()) == sum(len(topic.forms) for topic in topics()) * 4


def test_the_three_sets_of_questions_are_disjoint_and_all_topics_are_learned() -> None:
    learned, paired, held_out = split_questions(random.Random(0))
    assert len({*learned, *paired, *held_out}) == len(learned) + len(paired) + len(held_out) == len(questions())
    assert {questions()[question] for question in learned} == set(topics())


def test_the_committed_pairs_are_what_the_script_writes(tmp_path: Path) -> None:
    make_pairs(tmp_path, seed=0)
    for split in ("train", "valid"):
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (PAIRS / f"{split}.jsonl").read_bytes()


def test_pairs_prefer_the_polite_manner() -> None:
    for row in load_pairs("train") + load_pairs("valid"):
        assert (detect_manner(row["chosen"]), detect_manner(row["rejected"])) == MANNERS
        assert is_fluent(row["prompt"], row["chosen"])
        assert is_fluent(row["prompt"], row["rejected"])


def test_the_tokenizer_gives_back_any_text() -> None:
    tokenizer = make_tokenizer(["Owls eat mice."])
    text = "Naïve 🦉 owls,\n  eat 12 mice!"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_bundle_is_small() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 3_000_000
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["quantization"]["bits"] == 4
