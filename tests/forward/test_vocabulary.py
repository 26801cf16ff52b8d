"""A tokenizer with ids that the model's embedding has no row for is refused wherever the two meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo import TrainConfig, evaluate, train
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Prompt
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.implicit_rewards import score
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.vocabulary import check_vocabulary, num_embeddings
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.generation import generate_responses
from tests.conftest import CHECKPOINT, PAIRS

BOTH_NUMBERS = "the tokenizer has ids up to 301, but the model's embedding has 300 rows, ids 0 to 299"


def with_added_tokens(folder: Path, **options: Any) -> str:
    """The tiny model, whose embedding has 300 rows, with a tokenizer of 302 tokens."""
    tokenizer = load_tokenizer(str(folder))._tokenizer
    tokenizer.add_tokens(["<one>", "<two>"], **options)
    tokenizer.save_pretrained(folder)
    return str(folder)


def generate(model: str, folder: Path) -> None:
    renderer = ChatRenderer(load_tokenizer(model))
    generate_responses(load_model(model).model, renderer, [Prompt("q")], SamplingParams(2))


COMMANDS: dict[str, Callable[[str, Path], Any]] = {
    "train": lambda model, folder: train(
        TrainConfig(model=model, data=str(PAIRS), adapter_path=str(folder / "run"), valid_pairs=0, iters=1)
    ),
    "evaluate": lambda model, folder: evaluate(TrainConfig(model=model, data=str(PAIRS), reference="base")),
    "score": lambda model, folder: score(TrainConfig(model=model, data=str(PAIRS)), folder / "scores.jsonl"),
    "generate": generate,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_ids_outside_of_the_embedding_are_refused_with_both_numbers(
    checkpoint: Path, tmp_path: Path, command: str
) -> None:
    model = with_added_tokens(checkpoint)
    with pytest.raises(UserError, match=BOTH_NUMBERS):
        COMMANDS[command](model, tmp_path)


def test_a_special_token_that_no_text_uses_may_lie_outside(checkpoint: Path) -> None:
    model = with_added_tokens(checkpoint, special_tokens=True)  # as that of images in Gemma 3's tokenizer
    network, tokenizer = load_model(model).model, load_tokenizer(model)
    assert num_embeddings(network) == 300 and max(tokenizer.get_vocab().values()) == 301
    check_vocabulary(network, tokenizer)
    tokenizer._tokenizer.chat_template += "<two>"
    with pytest.raises(UserError, match=BOTH_NUMBERS):
        check_vocabulary(network, tokenizer)


def test_a_tokenizer_may_have_fewer_ids_than_the_embedding_has_rows() -> None:
    check_vocabulary(load_model(str(CHECKPOINT)).model, load_tokenizer(str(CHECKPOINT)))
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert num_embeddings(load_model(str(CHECKPOINT)).model) == config["vocab_size"]
