"""What is recorded of held-out examples, against plain forward passes of the model."""

from __future__ import annotations

import threading
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlx_dpo import Interrupted, Listener, train
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.evaluation.example_sets import examples_from_rows
from mlx_dpo.evaluation.metrics import PAIR_METRICS
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.reporting.run_recorder import RunRecorder, repeated_ngram_share, token_texts
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.training.listener import Listeners, Metrics
from tests.conftest import CHECKPOINT
from tests.reporting.conftest import config, pairs, record

HELD_OUT = pairs(6, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("runs") / "run", pairs(16, 0), HELD_OUT, iters=4, steps_per_eval=2, samples=2)


def test_means_over_examples_are_the_metrics(run: Path) -> None:
    numbers = RunStatistics.read(run)
    assert [record.step for record in numbers.eval_records] == [0, 2, 4]
    for eval_record, evaluation in zip(numbers.eval_records, numbers.eval_metrics, strict=True):
        for name in PAIR_METRICS:
            assert eval_record.metrics[name].mean() == pytest.approx(evaluation[name], rel=1e-4, abs=1e-6)


def test_log_probs_and_kl_are_those_of_a_plain_softmax(run: Path) -> None:
    """Each example alone, prompt and completion in one sequence, with mlx-lm's model and numpy's float64."""
    tuned, tokenizer = mlx_lm.load(str(CHECKPOINT), adapter_path=str(run))
    base, _ = mlx_lm.load(str(CHECKPOINT))
    encoded = EncodedExamples(
        examples_from_rows(HELD_OUT, "rows"), ExampleEncoder(tokenizer, max_length=2048, overlong="error", raw=False)
    )
    last = RunStatistics.read(run).eval_records[-1]
    assert last.kl is not None and last.kl.min() > 0
    for i in range(len(HELD_OUT)):
        for side, ids in enumerate(encoded[i].completions):
            (p, q), start = (_log_softmax(model, [*encoded[i].prompt, *ids]) for model in (tuned, base)), -len(ids) - 1
            p, q = p[start:-1], q[start:-1]
            assert last.logps[i, side] == pytest.approx(p[np.arange(len(ids)), list(ids)].sum(), rel=1e-4)
            assert last.kl[i, side] == pytest.approx((np.exp(p) * (p - q)).sum(), rel=2e-3)


def _log_softmax(model: object, ids: list[int]) -> np.ndarray:
    logits = np.array(model(mx.array([ids]))[0].astype(mx.float32), np.float64)  # type: ignore[operator]
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def test_the_most_wrong_and_the_most_right_are_picked(run: Path) -> None:
    numbers = RunStatistics.read(run)
    margins = numbers.eval_records[-1].margins
    wrong = [example["fit"] for example in numbers.extreme_examples if not example["right"]]
    right = [example["fit"] for example in numbers.extreme_examples if example["right"]]
    assert wrong == pytest.approx(sorted(margins)[:3], rel=1e-4)
    assert right == pytest.approx(sorted(margins)[:-4:-1], rel=1e-4)
    rows = {row["prompt"]: row for row in HELD_OUT}
    for example in numbers.extreme_examples:
        chosen = "".join(example["sides"][0]["pieces"])
        assert rows[example["prompt"]]["chosen"] in chosen and chosen.rstrip().endswith("<|im_end|>")
        completion = example["sides"][0]
        assert len(completion["logps"]) == len(completion["before"]) == len(completion["pieces"])


def test_recording_does_not_change_what_is_trained(run: Path, tmp_path: Path) -> None:
    """Sampling completions does not change the random numbers of dropout."""
    knobs = {"iters": 4, "steps_per_eval": 2, "dropout": 0.2}
    train(config(tmp_path / "plain", **knobs), rows=pairs(16, 0), valid_rows=HELD_OUT)
    record(tmp_path / "recorded", pairs(16, 0), HELD_OUT, samples=2, **knobs)
    plain, recorded = ((tmp_path / name / "adapters.safetensors").read_bytes() for name in ("plain", "recorded"))
    assert plain == recorded


def test_a_resumed_run_has_every_evaluation_once(tmp_path: Path) -> None:
    stop = threading.Event()

    class After(Listener):
        def on_step(self, step: int, metrics: Metrics) -> None:
            if step == 3:
                stop.set()

    knobs = {"iters": 4, "steps_per_eval": 2}
    with pytest.raises(Interrupted):
        listener = Listeners(MetricsLog(), RunRecorder(num_samples=2), After())
        train(config(tmp_path, **knobs), rows=pairs(16, 0), valid_rows=HELD_OUT, listener=listener, stop=stop)
    listener = Listeners(MetricsLog(), RunRecorder(num_samples=2))
    train(config(tmp_path, **knobs), rows=pairs(16, 0), valid_rows=HELD_OUT, listener=listener, resume=True)
    numbers = RunStatistics.read(tmp_path)
    assert [record.step for record in numbers.eval_records] == [0, 2, 4]
    assert [samples.step for samples in numbers.samples] == [0, 4]
    assert all(side["before"] for example in numbers.extreme_examples for side in example["sides"])


def test_the_text_of_tokens_is_the_text() -> None:
    _, tokenizer = mlx_lm.load(str(CHECKPOINT))
    text = "Grüße, 世界! 🎉 the blue house"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(token_texts(tokenizer, ids)) == text


def test_repeated_4_grams() -> None:
    assert repeated_ngram_share([1, 2, 3]) == 0 == repeated_ngram_share([1, 2, 3, 4, 5, 6])
    assert repeated_ngram_share([7] * 11) == 1 - 1 / 8
    assert repeated_ngram_share([1, 2, 3, 4, 1, 2, 3, 4]) == 1 - 4 / 5


def test_a_line_that_was_cut_off_is_left_out(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "x": [1, ')
    assert records.read_jsonl(file) == [{"step": 1}]
    assert records.to_json({"x": float("nan")}) == '{"x": null}'
    assert read_metrics(run)
