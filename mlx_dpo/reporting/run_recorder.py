"""Writes down what a run's page shows and metrics.jsonl does not hold: pair by pair, token by token, in samples."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.row_formats import Completion
from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot
from mlx_dpo.evaluation.measuring import ExampleMeasurement
from mlx_dpo.evaluation.metrics import METRICS
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.sampling.generation import SamplingParams, generate_from_ids
from mlx_dpo.training.listener import Listener, RunPlan
from mlx_dpo.training.run_folder import append_line

NUM_KL_EXAMPLES = 64  # held-out examples whose KL is measured; each costs two forward passes an evaluation
NUM_TOKEN_EXAMPLES = 256  # whose token log-probs before training are kept; the page's examples are among them
NUM_EXTREME_EXAMPLES = 5  # examples that the policy gets most wrong, and most right
MAX_SAMPLE_TOKENS = 128
DECODE_WINDOW = 8  # tokens that a token's text may depend on


class RunRecorder(Listener):
    """Fills a run's report/ folder.

    Args:
        told: hears, as `Listener.evaluated` does, when all of an evaluation is written down.
        say: hears where it can't be, which costs the page and not the run.
        samples: held-out prompts to answer before the first and after the last step, at temperature 1.
        command: what was typed.
    """

    def __init__(
        self,
        on_recorded: Callable[[float, float], None] = lambda reference, sampling: None,
        notify: Callable[[str], None] = lambda text: None,
        *,
        num_samples: int = records.DEFAULT_NUM_SAMPLES,
        command: str | None = None,
    ) -> None:
        self.on_recorded, self.notify, self.num_samples, self.command = on_recorded, notify, num_samples, command
        self.sampling_seconds, self.failed = 0.0, False

    def on_run_start(self, plan: RunPlan) -> None:
        self.plan, self.folder = plan, plan.run / records.REPORT_FOLDER
        with self._on_a_good_disk():
            for name in (records.EVALUATIONS_FILE, records.SAMPLES_FILE):
                records.drop_lines_after(self.folder / name, plan.first_step if plan.first_step else -1)
            records.write_json(self.folder / records.METADATA_FILE, _about(plan, self.command))

    def on_evaluation_snapshot(self, seen: EvalSnapshot) -> None:
        with self._on_a_good_disk():
            self._write(seen)
        self.on_recorded(seen.example_set.reference.seconds, self.sampling_seconds)

    @contextmanager
    def _on_a_good_disk(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            if not self.failed:
                self.notify(f"{self.folder} can't be written: {error.strerror or error}; the page will lack it.")
            self.failed = True

    def _write(self, seen: EvalSnapshot) -> None:
        examples = sorted(seen.measurements, key=lambda one: one.index)
        seen = EvalSnapshot(seen.step, examples, seen.example_set, seen.policy, seen.budget)
        line = evaluation_record(seen)
        if seen.step == 0:
            line["tokens"] = [[_rounded(side) for side in one.token_logps] for one in examples[:NUM_TOKEN_EXAMPLES]]
        append_line(self.folder / records.EVALUATIONS_FILE, records.to_json(line))
        first = next(iter(records.read_jsonl(self.folder / records.EVALUATIONS_FILE)), {})
        records.write_json(self.folder / records.EXAMPLES_FILE, extreme_examples(seen, first.get("tokens")))
        if self.num_samples and seen.can_run_policy and seen.step in (0, self.plan.steps):
            began = time.perf_counter()
            append_line(self.folder / records.SAMPLES_FILE, records.to_json(self._sampled(seen)))
            self.sampling_seconds += time.perf_counter() - began

    def _sampled(self, seen: EvalSnapshot) -> dict[str, Any]:
        pairs = seen.example_set.examples
        asked = [pairs[one.index] for one in seen.measurements[: self.num_samples]]
        tokenizer = pairs.encoder.tokenizer
        sampling = SamplingParams(MAX_SAMPLE_TOKENS, temperature=1.0)
        answers = generate_from_ids(seen.policy.model, tokenizer, [one.prompt for one in asked], sampling)
        ids = [tokenizer.encode(text, add_special_tokens=False)[:MAX_SAMPLE_TOKENS] for text in answers]
        return {
            "step": seen.step,
            "prompts": [conversation_text(one.example.prompt) for one in asked],
            "answers": answers,
            "tokens": [len(one) for one in ids],
            "repeated": [repeated_ngram_share(one) for one in ids],
        }


def evaluation_record(seen: EvalSnapshot) -> dict[str, Any]:
    """An evaluation's numbers by example: metrics, lengths, reference log-probs and, of the first ones, KLs."""
    table = np.stack([one.metrics for one in seen.measurements])
    kls = seen.kl(NUM_KL_EXAMPLES)
    return {
        "step": seen.step,
        "examples": [one.index for one in seen.measurements],
        "metrics": {name: column.tolist() for name, column in zip(METRICS, table.T, strict=True)},
        "lengths": [[len(side) for side in one.token_logps] for one in seen.measurements],
        "logps": [[float(side.sum(dtype=np.float64)) for side in one.token_logps] for one in seen.measurements],
        "reference": [one.reference_logps.tolist() for one in seen.measurements],
        "kl": None if kls is None else kls.tolist(),
    }


def extreme_examples(seen: EvalSnapshot, before: list[list[list[float]]] | None) -> list[dict[str, Any]]:
    """The examples that the policy gets most wrong, then those it gets most right, with their tokens."""
    pairs, known = seen.example_set.examples, seen.measurements[:NUM_TOKEN_EXAMPLES]
    fits = np.array([_fit(one, pairs) for one in known])
    order = np.argsort(fits, kind="stable")
    half = min(NUM_EXTREME_EXAMPLES, len(order) // 2)
    chosen = [*order[:half], *order[len(order) - half :][::-1]]
    return [
        {"right": place >= half, "fit": float(fits[i]), **_told(known[i], pairs, before[i] if before else None)}
        for place, i in enumerate(chosen)
    ]


def _fit(one: ExampleMeasurement, pairs: EncodedExamples) -> float:
    """How well an example is as it should be: a pair's margin, a labelled answer's reward by its label, else nats."""
    metrics = dict(zip(METRICS, one.metrics.tolist(), strict=True))
    example = pairs.source[one.index]
    if not isinstance(example, Completion):
        moved = abs(metrics["rewards/margins"]) > 1e-6
        return metrics["rewards/margins"] if moved else metrics["logps/chosen"] - metrics["logps/rejected"]
    if example.desirable is None:
        return metrics["logps/chosen"] / len(one.token_logps[0])
    return metrics["rewards/chosen"] if example.desirable else -metrics["rewards/rejected"]


def _told(one: ExampleMeasurement, pairs: EncodedExamples, before: list[list[float]] | None) -> dict[str, Any]:
    encoded = pairs[one.index]
    sides = [
        {
            "pieces": token_texts(pairs.encoder.tokenizer, ids),
            "logps": _rounded(one.token_logps[i]),
            "before": before[i] if before else None,
        }
        for i, ids in enumerate(encoded.completions)
    ]
    example = encoded.example
    label = example.desirable if isinstance(example, Completion) else None
    return {
        "where": str(pairs.source.location(one.index)),
        "prompt": conversation_text(example.prompt),
        "label": label,
        "sides": sides,
    }


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token where it stands; of a character that takes several, all stands with the last."""
    found = []
    for i in range(len(ids)):
        window = list(ids[max(0, i - DECODE_WINDOW) : i + 1])
        text, before = tokenizer.decode(window), tokenizer.decode(window[:-1]) if len(window) > 1 else ""
        common = next((n for n, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), len(before))
        found.append("" if text.endswith("\ufffd") else text[common:])
    return found


def repeated_ngram_share(ids: Sequence[int]) -> float:
    """The share of an answer's 4-grams that stand earlier in it."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def conversation_text(turns: TextOrMessages) -> str:
    """A prompt or an answer as text, a message a line."""
    if isinstance(turns, str):
        return turns
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in turns)


def _about(plan: RunPlan, command: str | None) -> dict[str, Any]:
    names = ("mlx-dpo", "mlx", "mlx-lm", "numpy")
    return {
        "command": command,
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {mx.device_info().get('device_name', 'CPU')}",
        "ranks": plan.ranks,
        "steps": plan.steps,
        "pairs": plan.num_examples,
        "what": plan.example_kind,
        "memory_limit": plan.memory_limit,
        "trained_parameters": plan.trainable_parameters,
        "all_parameters": plan.total_parameters,
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
