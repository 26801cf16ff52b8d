"""Record single held-out examples, their tokens and samples, which a run's page shows besides metrics.jsonl."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import compress
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.examples import Completion
from mlx_dpo.evaluation.eval_snapshot import NUM_KL_EXAMPLES, EvalSnapshot
from mlx_dpo.evaluation.measuring import ExampleMeasurement
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.reporting.metrics_log import MetricsLog
from mlx_dpo.reporting.rollout_log import RolloutLog
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.generation import generate_from_token_ids
from mlx_dpo.training.events import Note, RunPlan
from mlx_dpo.training.listener import Listener, Listeners
from mlx_dpo.utils.atomic_write import append_line

NUM_TOKEN_EXAMPLES = 256  # held-out examples whose token log-probs before training are kept, to show on the page
NUM_EXTREME_EXAMPLES = 5  # examples on the page with the lowest scores, and with the highest
MAX_SAMPLE_TOKENS = 64
DECODE_WINDOW = 8  # tokens on which the text of a token may depend


class RunRecorder(Listener):
    """Writes a run's report/ folder.

    What can't be written, on a full disk, is kept in memory and written after the next evaluation or at the run's end.

    Args:
        on_message: receives a warning if the folder can't be written. The run continues.
        num_samples: number of held-out prompts for which completions are sampled, at temperature 1, before the first
            and after the last step.
        command: the command that started the run.
    """

    def __init__(
        self,
        on_message: Callable[[str], None] = lambda text: None,
        *,
        num_samples: int = records.DEFAULT_NUM_SAMPLES,
        command: str | None = None,
    ) -> None:
        self.on_message, self.num_samples, self.command = on_message, num_samples, command
        self.warned = False
        self.pending_writes: list[Callable[[], None]] = []
        self.token_logps_before: list[Any] | None = None

    def on_run_start(self, plan: RunPlan) -> None:
        """Write the run's metadata."""
        self.plan, self.folder = plan, plan.run / records.REPORT_FOLDER
        last_kept = plan.first_step if plan.first_step and not plan.evaluates_first else plan.first_step - 1
        self._try_to_write(lambda: self._begin(plan, last_kept))

    def _begin(self, plan: RunPlan, last_kept: int) -> None:
        for name in (records.EVALUATIONS_FILE, records.SAMPLES_FILE):
            records.drop_lines_after(self.folder / name, last_kept)
        if before := records.read_jsonl(self.folder / records.SAMPLES_FILE):
            self.num_samples = len(before[0]["prompts"])  # the same prompts before and after
        first = next(iter(records.read_jsonl(self.folder / records.EVALUATIONS_FILE)), {})
        self.token_logps_before = first.get("tokens")
        records.write_json(self.folder / records.METADATA_FILE, _metadata(plan, self.command))

    def on_evaluation_snapshot(self, snapshot: EvalSnapshot) -> None:
        """Record the evaluation and sample completions."""
        self._record(snapshot)
        self._write_pending()

    def on_run_end(self) -> None:
        """Write what could not be written before."""
        self._write_pending()

    def _write_pending(self) -> None:
        """Make the pending writes, in order, up to the first one that fails."""
        while self.pending_writes and self._try_to_write(self.pending_writes[0]):
            self.pending_writes.pop(0)

    def _try_to_write(self, write: Callable[[], None]) -> bool:
        """Make a write and return whether it succeeded; the first failure is reported."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write()
            return True
        except OSError as error:
            if not self.warned:
                reason = error.strerror or error
                self.on_message(f"{self.folder} can't be written: {reason}. It is tried again at the next evaluation.")
            self.warned = True
            return False

    def _record(self, snapshot: EvalSnapshot) -> None:
        in_order = sorted(snapshot.measurements, key=lambda measurement: measurement.index)
        ordered = replace(snapshot, measurements=in_order)
        line = evaluation_record(ordered)
        if snapshot.step == 0 and not snapshot.is_reward_model:
            first = in_order[:NUM_TOKEN_EXAMPLES]
            line["tokens"] = [[_rounded(logps) for logps in measurement.token_logps] for measurement in first]
            self.token_logps_before = line["tokens"]
        examples = extreme_examples(ordered, self.token_logps_before)
        self.pending_writes += [
            partial(append_line, self.folder / records.EVALUATIONS_FILE, records.to_json(line)),
            partial(records.write_json, self.folder / records.EXAMPLES_FILE, examples),
        ]
        can_sample = snapshot.can_run_policy and not snapshot.is_reward_model
        if self.num_samples and can_sample and snapshot.step in (0, self.plan.steps):
            start = time.perf_counter()
            sampled = records.to_json(self._sample(ordered))
            self.pending_writes.append(partial(append_line, self.folder / records.SAMPLES_FILE, sampled))
            snapshot.sampling_seconds += time.perf_counter() - start

    def _sample(self, snapshot: EvalSnapshot) -> dict[str, Any]:
        examples = snapshot.example_set.examples
        sampled = [examples[measurement.index] for measurement in snapshot.measurements[: self.num_samples]]
        tokenizer = examples.encoder.tokenizer
        params = SamplingParams(MAX_SAMPLE_TOKENS, temperature=1.0)
        completions = generate_from_token_ids(snapshot.policy.model, tokenizer, [ex.prompt for ex in sampled], params)
        ids = [tokenizer.encode(text, add_special_tokens=False)[:MAX_SAMPLE_TOKENS] for text in completions]
        return {
            "step": snapshot.step,
            "prompts": [conversation_text(example.example.prompt) for example in sampled],
            "answers": completions,
            "tokens": list(map(len, ids)),
            "repeated": list(map(repeated_ngram_share, ids)),
        }


def recording_listeners(forward: Listener, num_samples: int, command: str | None) -> Listener:
    """The listeners that record a run's numbers. They must be in the process that holds the model.

    Args:
        forward: receives their warnings, as notes.
        num_samples: number of held-out prompts for which completions are sampled.
        command: the command that started the run.
    """

    def on_message(text: str) -> None:
        forward.handle(Note(text))

    recorder = RunRecorder(on_message, num_samples=num_samples, command=command)
    return Listeners(MetricsLog(on_message), RolloutLog(on_message), recorder)


def evaluation_record(snapshot: EvalSnapshot) -> dict[str, Any]:
    """A line of evaluations.jsonl: metrics, lengths and log-probs of each example, and the KL of the first ones."""
    measurements = snapshot.measurements
    metrics = np.stack([measurement.metrics for measurement in measurements])
    kl = snapshot.kl(NUM_KL_EXAMPLES)
    return {
        "step": snapshot.step,
        "examples": [measurement.index for measurement in measurements],
        "metrics": {name: column.tolist() for name, column in zip(snapshot.metric_names, metrics.T, strict=True)},
        "lengths": [measurement.lengths.tolist() for measurement in measurements],
        "logps": None
        if snapshot.is_reward_model
        else [[float(logps.sum(dtype=np.float64)) for logps in m.token_logps] for m in measurements],
        "reference": [measurement.reference_logps.tolist() for measurement in measurements],
        "kl": None if kl is None else kl.tolist(),
    }


def extreme_examples(snapshot: EvalSnapshot, token_logps_before: list[Any] | None) -> list[dict[str, Any]]:
    """The examples that the policy gets most wrong, then those that it gets most right.

    Args:
        snapshot: the evaluation, its measurements in the order of the examples.
        token_logps_before: per example and completion, the token log-probs before training; None if unknown.

    Returns:
        Values of pairs.json: whether the policy is `right`, its score (`fit`), where the row is from, and the
        completions (`sides`) with the text and the log-prob of each token.
    """
    examples, measurements = snapshot.example_set.examples, snapshot.measurements[:NUM_TOKEN_EXAMPLES]
    scores = np.array([_score(measurement, snapshot.metric_names, examples) for measurement in measurements])
    order = np.argsort(scores, kind="stable")
    count = min(NUM_EXTREME_EXAMPLES, len(order) // 2)
    lowest, highest = order[:count], order[len(order) - count :][::-1]
    return [
        {
            "right": right,
            "fit": float(scores[i]),
            **_example_json(
                measurements[i],
                examples,
                token_logps_before[i] if token_logps_before else None,
                snapshot.is_reward_model,
            ),
        }
        for right, indices in ((False, lowest), (True, highest))
        for i in indices
    ]


def _score(measurement: ExampleMeasurement, names: Sequence[str], examples: EncodedExamples) -> float:
    """The score of an example: a pair's margin, the reward signed by the label, or log-prob per token without label."""
    metrics = dict(zip(names, measurement.metrics.tolist(), strict=True))
    example = examples.source[measurement.index]
    if not isinstance(example, Completion):
        has_moved = abs(metrics["rewards/margins"]) > 1e-6 or "logps/chosen" not in metrics
        return metrics["rewards/margins"] if has_moved else metrics["logps/chosen"] - metrics["logps/rejected"]
    if example.desirable is None:
        return metrics["logps/chosen"] / len(measurement.token_logps[0])
    return metrics["rewards/chosen"] if example.desirable else -metrics["rewards/rejected"]


def _example_json(
    measurement: ExampleMeasurement,
    examples: EncodedExamples,
    token_logps_before: list[Any] | None,
    is_reward_model: bool,
) -> dict[str, Any]:
    encoded = examples[measurement.index]
    completions = [
        {
            "pieces": list(compress(token_texts(examples.encoder.tokenizer, ids), encoded.mask(i))),
            "logps": [] if is_reward_model else _rounded(measurement.token_logps[i]),
            "before": token_logps_before[i] if token_logps_before else None,
        }
        for i, ids in enumerate(encoded.completions)
    ]
    example = encoded.example
    return {
        "where": str(examples.source.location(measurement.index)),
        "prompt": conversation_text(example.prompt),
        "label": example.desirable if isinstance(example, Completion) else None,
        "sides": completions,
    }


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token in context. A character that takes several tokens is the text of the last of them."""
    texts = []
    for i in range(len(ids)):
        window = list(ids[max(0, i - DECODE_WINDOW) : i + 1])
        text, before = tokenizer.decode(window), tokenizer.decode(window[:-1]) if len(window) > 1 else ""
        common = next((n for n, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), len(before))
        texts.append("" if text.endswith("\ufffd") else text[common:])
    return texts


def repeated_ngram_share(ids: Sequence[int]) -> float:
    """The share of a completion's 4-grams that occur earlier in it."""
    ngrams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def conversation_text(conversation: TextOrMessages) -> str:
    """A prompt or a completion as text, with a line per message."""
    if isinstance(conversation, str):
        return conversation
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in conversation)


def _metadata(plan: RunPlan, command: str | None) -> dict[str, Any]:
    packages = ("mlx-dpo", "mlx", "mlx-lm", "numpy")
    return {
        "command": command,
        **({records.OUTPUTS_WRITTEN_KEY: False} if command else {}),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {mx.device_info().get('device_name', 'CPU')}",
        "ranks": plan.ranks,
        "steps": plan.steps,
        "pairs": plan.num_examples,
        "what": plan.example_kind,
        "memory_limit": plan.memory_limit,
        "trained_parameters": plan.trainable_parameters,  # of these two, `find_unwritten_run` makes a plan again
        "all_parameters": plan.total_parameters,
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
