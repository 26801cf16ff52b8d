"""The model that answers: out of memory while something else needs it, and loaded again with another adapter."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dpo.errors import UserError
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.web.answer_generator import AnswerGenerator
from mlx_dpo.web.answer_request import AnswerRequest, AnswerUpdate
from tests.web.collect_server_process import MODEL

SECONDS = 60


@pytest.fixture
def generator() -> Iterator[AnswerGenerator]:
    started = AnswerGenerator(MODEL)
    started.start()
    assert started.is_ready.wait(SECONDS)
    yield started
    started.stop()


def ask(generator: AnswerGenerator, max_tokens: int = 4) -> queue.SimpleQueue[AnswerUpdate]:
    updates: queue.SimpleQueue[AnswerUpdate] = queue.SimpleQueue()
    messages = [{"role": "user", "content": "Hi"}]
    generator.submit(AnswerRequest(messages, SamplingParams(max_tokens, 1.0), 2, False, updates.put))
    return updates


def last(updates: queue.SimpleQueue[AnswerUpdate]) -> AnswerUpdate:
    while isinstance(update := updates.get(timeout=SECONDS), list):
        pass
    return update


def peak_of_loading(generator: AnswerGenerator) -> int:
    mx.reset_peak_memory()
    generator.load(None)
    assert last(ask(generator)) is None
    return mx.get_peak_memory()


def test_released_and_loaded_again(generator: AnswerGenerator) -> None:
    assert last(ask(generator)) is None
    loaded = mx.get_active_memory()
    generator.release("training has the memory")
    error = last(ask(generator))
    assert isinstance(error, UserError) and "training has the memory" in str(error)
    assert not generator.is_ready.is_set()
    assert mx.get_active_memory() < loaded / 100
    first, second = (peak_of_loading(generator) for _ in range(2))
    assert second < first + loaded / 2  # the old model is gone before the new one is loaded
    assert generator.is_ready.is_set() and generator.release_reason is None


def test_an_answer_that_is_being_sampled_ends(generator: AnswerGenerator) -> None:
    updates, waiting = ask(generator, 100_000), ask(generator)
    assert isinstance(updates.get(timeout=SECONDS), list)
    generator.release("training has the memory")
    for each in (updates, waiting):
        assert "training has the memory" in str(last(each))


def test_an_adapter_that_can_not_be_loaded(generator: AnswerGenerator, tmp_path: Path) -> None:
    generator.load(tmp_path)
    assert isinstance(last(ask(generator)), UserError)
    assert generator.error and generator.adapter_digest is None and generator.is_ready.is_set()
    generator.load(None)
    assert last(ask(generator)) is None and generator.error is None


def test_places_of_a_comparison_are_drawn(generator: AnswerGenerator) -> None:
    places = set()
    for _ in range(40):
        updates: queue.SimpleQueue[AnswerUpdate] = queue.SimpleQueue()
        request = AnswerRequest([{"role": "user", "content": "Hi"}], SamplingParams(1, 1.0), 2, True, updates.put)
        generator.submit(request)
        assert last(updates) is None
        places.add(tuple(request.policies))
    assert places == {("base", "tuned"), ("tuned", "base")}
