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

from mlx_dpo.data.conversations import Turns
from mlx_dpo.data.encoded_examples import EncodedPairs
from mlx_dpo.data.row_formats import Completion
from mlx_dpo.evaluation.eval_snapshot import HeldOut
from mlx_dpo.evaluation.measuring import Measured
from mlx_dpo.evaluation.metrics import METRICS
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.sampling.generation import Sampling, answer_ids
from mlx_dpo.training.listener import Listener, RunPlan
from mlx_dpo.training.run_folder import append_line

KL_EXAMPLES = 64  # held-out examples whose KL is measured; each costs two forward passes an evaluation
TOKEN_EXAMPLES = 256  # whose token log-probs before training are kept; the page's examples are among them
SHOWN = 5  # examples that the policy gets most wrong, and most right
SAMPLE_TOKENS = 128
WINDOW = 8  # tokens that a token's text may depend on


class Recorder(Listener):
    """Fills a run's report/ folder.

    Args:
        told: hears, as `Listener.evaluated` does, when all of an evaluation is written down.
        say: hears where it can't be, which costs the page and not the run.
        samples: held-out prompts to answer before the first and after the last step, at temperature 1.
        command: what was typed.
    """

    def __init__(
        self,
        told: Callable[[float, float], None] = lambda reference, sampling: None,
        say: Callable[[str], None] = lambda text: None,
        *,
        samples: int = records.SAMPLED,
        command: str | None = None,
    ) -> None:
        self.told, self.say, self.samples, self.command = told, say, samples, command
        self.sampling_seconds, self.failed = 0.0, False

    def begin(self, plan: RunPlan) -> None:
        self.plan, self.folder = plan, plan.run / records.FOLDER
        with self._on_a_good_disk():
            for name in (records.EVALUATIONS, records.SAMPLES):
                records.keep_lines(self.folder / name, plan.first_step if plan.first_step else -1)
            records.write_json(self.folder / records.ABOUT, _about(plan, self.command))

    def held_out(self, seen: HeldOut) -> None:
        with self._on_a_good_disk():
            self._write(seen)
        self.told(seen.held_out.reference.seconds, self.sampling_seconds)

    @contextmanager
    def _on_a_good_disk(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            if not self.failed:
                self.say(f"{self.folder} can't be written: {error.strerror or error}; the page will lack it.")
            self.failed = True

    def _write(self, seen: HeldOut) -> None:
        examples = sorted(seen.examples, key=lambda one: one.index)
        seen = HeldOut(seen.step, examples, seen.held_out, seen.policy, seen.budget)
        line = evaluation_line(seen)
        if seen.step == 0:
            line["tokens"] = [[_rounded(side) for side in one.tokens] for one in examples[:TOKEN_EXAMPLES]]
        append_line(self.folder / records.EVALUATIONS, records.to_json(line))
        first = next(iter(records.read_lines(self.folder / records.EVALUATIONS)), {})
        records.write_json(self.folder / records.PAIRS, picked(seen, first.get("tokens")))
        if self.samples and seen.can_run and seen.step in (0, self.plan.steps):
            began = time.perf_counter()
            append_line(self.folder / records.SAMPLES, records.to_json(self._sampled(seen)))
            self.sampling_seconds += time.perf_counter() - began

    def _sampled(self, seen: HeldOut) -> dict[str, Any]:
        pairs = seen.held_out.pairs
        asked = [pairs[one.index] for one in seen.examples[: self.samples]]
        tokenizer = pairs.encoder.tokenizer
        sampling = Sampling(SAMPLE_TOKENS, temperature=1.0)
        answers = answer_ids(seen.policy.model, tokenizer, [one.prompt for one in asked], sampling)
        ids = [tokenizer.encode(text, add_special_tokens=False)[:SAMPLE_TOKENS] for text in answers]
        return {
            "step": seen.step,
            "prompts": [plain_text(one.example.prompt) for one in asked],
            "answers": answers,
            "tokens": [len(one) for one in ids],
            "repeated": [repeated(one) for one in ids],
        }


def evaluation_line(seen: HeldOut) -> dict[str, Any]:
    """An evaluation's numbers by example: metrics, lengths, reference log-probs and, of the first ones, KLs."""
    table = np.stack([one.metrics for one in seen.examples])
    kls = seen.kl(KL_EXAMPLES)
    return {
        "step": seen.step,
        "examples": [one.index for one in seen.examples],
        "metrics": {name: column.tolist() for name, column in zip(METRICS, table.T, strict=True)},
        "lengths": [[len(side) for side in one.tokens] for one in seen.examples],
        "logps": [[float(side.sum(dtype=np.float64)) for side in one.tokens] for one in seen.examples],
        "reference": [one.reference.tolist() for one in seen.examples],
        "kl": None if kls is None else kls.tolist(),
    }


def picked(seen: HeldOut, before: list[list[list[float]]] | None) -> list[dict[str, Any]]:
    """The examples that the policy gets most wrong, then those it gets most right, with their tokens."""
    pairs, known = seen.held_out.pairs, seen.examples[:TOKEN_EXAMPLES]
    fits = np.array([_fit(one, pairs) for one in known])
    order = np.argsort(fits, kind="stable")
    half = min(SHOWN, len(order) // 2)
    chosen = [*order[:half], *order[len(order) - half :][::-1]]
    return [
        {"right": place >= half, "fit": float(fits[i]), **_told(known[i], pairs, before[i] if before else None)}
        for place, i in enumerate(chosen)
    ]


def _fit(one: Measured, pairs: EncodedPairs) -> float:
    """How well an example is as it should be: a pair's margin, a labelled answer's reward by its label, else nats."""
    metrics = dict(zip(METRICS, one.metrics.tolist(), strict=True))
    example = pairs.source[one.index]
    if not isinstance(example, Completion):
        moved = abs(metrics["rewards/margins"]) > 1e-6
        return metrics["rewards/margins"] if moved else metrics["logps/chosen"] - metrics["logps/rejected"]
    if example.desirable is None:
        return metrics["logps/chosen"] / len(one.tokens[0])
    return metrics["rewards/chosen"] if example.desirable else -metrics["rewards/rejected"]


def _told(one: Measured, pairs: EncodedPairs, before: list[list[float]] | None) -> dict[str, Any]:
    encoded = pairs[one.index]
    sides = [
        {
            "pieces": pieces(pairs.encoder.tokenizer, ids),
            "logps": _rounded(one.tokens[i]),
            "before": before[i] if before else None,
        }
        for i, ids in enumerate(encoded.completions)
    ]
    example = encoded.example
    label = example.desirable if isinstance(example, Completion) else None
    return {
        "where": str(pairs.source.where(one.index)),
        "prompt": plain_text(example.prompt),
        "label": label,
        "sides": sides,
    }


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token where it stands; of a character that takes several, all stands with the last."""
    found = []
    for i in range(len(ids)):
        window = list(ids[max(0, i - WINDOW) : i + 1])
        text, before = tokenizer.decode(window), tokenizer.decode(window[:-1]) if len(window) > 1 else ""
        common = next((n for n, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), len(before))
        found.append("" if text.endswith("\ufffd") else text[common:])
    return found


def repeated(ids: Sequence[int]) -> float:
    """The share of an answer's 4-grams that stand earlier in it."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def plain_text(turns: Turns) -> str:
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
        "pairs": plan.pairs,
        "what": plan.what,
        "memory_limit": plan.memory_limit,
        "trained_parameters": plan.trained_parameters,
        "all_parameters": plan.all_parameters,
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
