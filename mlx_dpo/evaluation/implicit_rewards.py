"""`score`: a policy as a reward model, its implicit reward for every answer of a file's rows.

A language model trained by DPO is a reward model too: beta times the log-ratio of policy and reference (Rafailov et al.
2023, section 5; Lambert et al. 2024 hold such models against others in RewardBench).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.adapters.adapter_folder import apply_adapter
from mlx_dpo.config import TrainConfig
from mlx_dpo.data.candidate_rows import parse_candidates
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.column_mapping import with_renamed_columns
from mlx_dpo.data.encoded_examples import EncodedExamples, ExampleSource
from mlx_dpo.data.examples import Candidates, Example
from mlx_dpo.data.micro_batches import prefetch
from mlx_dpo.data.row_formats import RowParser
from mlx_dpo.evaluation.completion_chunks import ChunkedRows
from mlx_dpo.evaluation.example_sets import Rows, open_evaluation_source
from mlx_dpo.evaluation.measuring import index_batches
from mlx_dpo.evaluation.metric_summary import ColumnLabels, EvaluationResult
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES, load_reference_model
from mlx_dpo.evaluation.score_file import ScoredRow, ScoreFile
from mlx_dpo.forward.device import keep_weights_resident
from mlx_dpo.forward.fingerprint import fingerprint
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.reference.reference_policy import CachedReference, NoReference, ReferencePolicy
from mlx_dpo.training.run import loss_from_config

REWARD_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/best",
    "rewards/mean",
)


def score(
    config: TrainConfig,
    output: str | Path,
    *,
    adapter_path: str | Path | None = None,
    length_normalise: bool = False,
    by: Sequence[str] = (),
    model: nn.Module | None = None,
    tokenizer: Any = None,
    rows: Rows | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the implicit reward of every answer to a JSONL file, a line a row, as they are computed.

    A line is the row's own keys with `rewards`, [answers] in the row's order (chosen before rejected), null where the
    row was dropped for its length; of `completions` also `best`, the answer of the highest reward, and `ranking`, the
    answers' numbers from 0, best first. `scorer` is a digest of all that the rewards follow from. Where the file is
    there already and begins as this call would write it, only what is missing is computed: rewards are computed a
    batch of rows at a time, and a batch that is not there whole is computed again, so that the file ends the same,
    to the bit, however often it was interrupted.

    Args:
        config: its model, data, length, reference, beta and batch size are used.
        output: where to.
        length_normalise: rewards are per token of an answer.
        by: columns to sum up by.
        adapter_path, model, tokenizer, rows, progress: as of `evaluate`; progress counts rows.

    Returns:
        `rows`, their number, and means with `intervals`: of pairs, and rows that say which answers are good,
        rewards/accuracies, margins, chosen and rejected; of others rewards/best and rewards/mean, over their answers.

    Raises:
        UserError: something given is wrong; the file at `output` is another's.
    """
    columns = ColumnLabels(_reader(config.columns), by)
    source = open_evaluation_source(config, rows, columns)
    count, labels = len(source), columns.labels_of_lines([source.location(i).line for i in range(len(source))])
    scoring = RewardScorer.load(config, source, adapter_path, length_normalise, model, tokenizer)
    file = ScoreFile(output, scoring.scorer_digest)
    table = [_measures(one) for one in file.resume(source, config.batch_size)]
    with file:
        for batch in scoring.score_batches(start=len(table)):
            file.write(batch)
            table += map(_measures, batch)
            if progress is not None:
                progress(len(table), count)
    return EvaluationResult("rows", np.array(table), range(count), labels, REWARD_METRICS).summary


def _reader(columns: Mapping[str, str]) -> RowParser:
    """`candidates_of`, of rows whose columns have other names; what is written is the row as it was."""
    if not columns:
        return parse_candidates
    read = with_renamed_columns(columns, parse_candidates)
    return lambda row, where: [replace(one, row=row) for one in read(row, where) if isinstance(one, Candidates)]


@dataclass(frozen=True)
class RewardScorer:
    """Rows to score and what scores them.

    Attributes:
        references: log-probs under another model, [answers] of each row; None where `reference` gives them.
        scorer: a digest of all that the rewards follow from, beside the rows.
    """

    config: TrainConfig
    examples: EncodedExamples
    loss: WeightedLoss
    budget: MemoryModel
    reference: ReferencePolicy
    reference_sums: list[np.ndarray] | None
    length_normalise: bool
    scorer_digest: str

    @classmethod
    def load(
        cls,
        config: TrainConfig,
        source: ExampleSource,
        adapter_path: str | Path | None = None,
        length_normalise: bool = False,
        model: nn.Module | None = None,
        tokenizer: Any = None,
    ) -> RewardScorer:
        """Loads the models, one at a time, to score the `Candidates` of a source; see `score`."""
        loss = loss_from_config(config)
        tokenizer = tokenizer or load_tokenizer(config.model)
        encoder = ExampleEncoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
        examples = EncodedExamples(source, encoder)
        examples.usable_indices()  # what can't be encoded is said before any model is loaded
        keep_weights_resident()
        reference: ReferencePolicy = NoReference()
        known, references = None, None
        if config.reference not in POLICY_REFERENCES:
            other = load_reference_model(config, tokenizer)
            known, references = other.cache.fingerprint, _all_sums(other, examples, config.batch_size)
            del other  # its memory is for the policy
            mx.clear_cache()
        model = load_model(config.model).model if model is None else model
        base = apply_adapter(model, adapter_path)
        network = Network.from_model(model)
        if config.reference in ("initial", "base"):
            reference = of_the_policy = CachedReference(network, base, config.model)
            known = of_the_policy.cache.fingerprint
        settings = {
            "policy": fingerprint(network),
            "reference": known,
            "beta": loss.settings["beta"],
            "length_normalise": length_normalise,
            **{name: getattr(config, name) for name in ("batch_size", "max_length", "overlong", "raw")},
            "chat_template": getattr(tokenizer, "chat_template", None),
            **config.columns,
        }
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()
        return cls(config, examples, loss, MemoryModel(network), reference, references, length_normalise, digest)

    def score_batches(self, start: int = 0) -> Iterator[list[ScoredRow]]:
        """The rows from `start` on, a batch at a time."""
        network, examples = self.budget.network, self.examples
        with without_dropout(network.model):
            for indices, cut in _cuts(examples, self.config.batch_size, self.budget, start):
                logps = cut.sums_by_row(lambda micro: network.logps(micro).sums)
                rewards = [
                    self._rewards(*of_row)
                    for of_row in zip(logps, self._of_reference(indices, cut), cut.completion_lengths, strict=True)
                ]
                yield [_row(examples.source[i], found) for i, found in zip(indices, rewards, strict=True)]

    def _of_reference(self, indices: np.ndarray, cut: ChunkedRows) -> list[np.ndarray]:
        if self.reference_sums is not None:
            return [self.reference_sums[i] for i in indices]
        return cut.sums_by_row(self.reference.sums)

    def _rewards(self, logps: np.ndarray, reference: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        rewards = self.loss.rewards(logps, reference, tokens)
        return rewards / tokens if self.length_normalise else rewards


def _cuts(
    examples: EncodedExamples, batch_size: int, budget: MemoryModel, start: int = 0
) -> Iterator[tuple[np.ndarray, ChunkedRows]]:
    """(indices, their answers) of each batch of rows from `start` on, made in a thread ahead of their use."""
    batches = index_batches(np.arange(start, len(examples)), batch_size)
    return prefetch(
        (batch, ChunkedRows.from_rows([examples.encode(int(i)) for i in batch], budget)) for batch in batches
    )


def _all_sums(reference: CachedReference, examples: EncodedExamples, batch_size: int) -> list[np.ndarray]:
    """[answers] of every row."""
    cuts = _cuts(examples, batch_size, MemoryModel(reference.network))
    return [of_row for _, cut in cuts for of_row in cut.sums_by_row(reference.sums)]


def _row(example: Example, rewards: np.ndarray) -> ScoredRow:
    assert isinstance(example, Candidates)
    return ScoredRow(example, rewards if len(rewards) else None)


def _measures(one: ScoredRow) -> list[float]:
    """What `NAMES` are of a row; NaN where it has no such number."""
    rewards, good = one.rewards, one.candidates.num_preferred
    if rewards is None:
        return [np.nan] * len(REWARD_METRICS)
    if good is None:
        return [np.nan] * 4 + [rewards.max() if len(rewards) > 1 else np.nan, rewards.mean()]
    chosen, rejected = rewards[:good].min(), rewards[good:].max()
    return [chosen, rejected, chosen > rejected, chosen - rejected, np.nan, np.nan]
