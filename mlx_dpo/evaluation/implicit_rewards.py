"""`score`: a policy as a reward model, with its implicit reward for every answer of a file's rows.

A language model trained by DPO is a reward model too: its reward is beta times the log-ratio of policy and reference
(Rafailov et al. 2023, section 5; RewardBench, Lambert et al. 2024, evaluates such models).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.example_sources import ExampleSource
from mlx_dpo.data.examples import Candidates
from mlx_dpo.data.row_parsing import RowParser
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.evaluator import ProgressCallback
from mlx_dpo.evaluation.example_sets import Rows, examples_from_rows, open_evaluation_source
from mlx_dpo.evaluation.loss_setup import config_for_adapters, preference_loss_from_config, resolve_loss_settings
from mlx_dpo.evaluation.measuring import ExampleMeasurement, measure
from mlx_dpo.evaluation.metric_summary import ColumnLabels, EvaluationResult
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES, load_reference_model
from mlx_dpo.evaluation.row_batches import by_example, index_batches, row_batches
from mlx_dpo.evaluation.score_file import ScoredRow, ScoreFile
from mlx_dpo.forward.device import keep_weights_resident
from mlx_dpo.forward.fingerprint import fingerprint
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.reward_network import load_reward_network
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.reference.reference_policy import CachedReference, NoReference, ReferencePolicy

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
    progress: ProgressCallback | None = None,
    on_status: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the reward of every completion in a file to a JSONL file, one line per row, as they are computed.

    It is the implicit reward of a policy, or the output of a reward model's head.

    A line is the row's own keys with `rewards`, [completions] in the row's order (chosen before rejected), null if the
    row was dropped for its length; with `completions` also `best`, the completion with the highest reward, and
    `ranking`, the indices of the completions, best first. `scorer` is a digest of everything that rewards depend on.

    If the file exists and begins as this call would write it, only what is missing is computed. Rewards are computed a
    batch of rows at a time, and an incomplete batch is computed again, so that the file is bit-identical at the end,
    however often it was interrupted.

    Args:
        config: its model, data, length, reference, beta and batch size are used.
        output: the file to write.
        adapter_path: adapter folder to load onto the model.
        length_normalise: divide rewards by the completion's number of tokens.
        by: columns of the rows to group the summary by.
        model: a model in memory instead of `config.model`; adapters that it has are the policy.
        tokenizer: of the model in memory.
        rows: rows in memory instead of `config.data`.
        progress: is called with the number of rows done and of all rows, first before any is run.
        on_status: receives what is being done before.

    Returns:
        `rows`, their number, and means with `intervals`: for pairs, and rows that say which completions are preferred,
        rewards/accuracies, margins, chosen and rejected; for others rewards/best and rewards/mean, over a row's
        completions.

    Raises:
        UserError: an argument is wrong, or the file at `output` has other rows or was written by another scorer.
    """
    columns = ColumnLabels(_row_parser(config.columns), by)
    source = open_evaluation_source(config, rows, columns)
    count, labels = len(source), columns.labels_of_lines([source.location(i).line for i in range(len(source))])
    scorer = RewardScorer(config, source, adapter_path, length_normalise, model, tokenizer, on_status)
    file = ScoreFile(output, scorer.scorer_digest)
    table = [_reward_metrics(row) for row in file.resume(source, config.batch_size)]
    if progress is not None:
        progress(len(table), count)
    with file:
        for batch in scorer.score_batches(start=len(table)):
            file.write(batch)
            table += map(_reward_metrics, batch)
            if progress is not None:
                progress(len(table), count)
    return EvaluationResult("rows", np.array(table), range(count), labels, REWARD_METRICS).summary


def adapter_rewards(
    adapter_path: str,
    model: str,
    rows: Sequence[dict[str, Any]],
    config: TrainConfig | None = None,
    policy: nn.Module | None = None,
) -> list[np.ndarray | None]:
    """Compute the implicit rewards of an adapter for rows with `prompt` and `completions`.

    Args:
        adapter_path: the adapter folder.
        model: its base model.
        rows: the rows.
        config: other settings, such as `max_length`; None: the defaults.
        policy: the model with the adapter, if it is in memory already.

    Returns:
        For each row its rewards, [completions]; None if it was dropped for its length.
    """
    source = examples_from_rows(rows, "answers", parse_candidates)
    config = (config or TrainConfig()).replace(model=model)
    scorer = RewardScorer(config, source, None if policy else adapter_path, model=policy, use_path_cache=True)
    return [row.rewards for batch in scorer.score_batches() for row in batch]


def _row_parser(columns: Mapping[str, str]) -> RowParser:
    """`parse_candidates` for rows whose columns have other names; what is written is the row as it was."""
    if not columns:
        return parse_candidates
    parse = with_renamed_columns(columns, parse_candidates)
    return lambda row, where: [
        replace(example, row=row) for example in parse(row, where) if isinstance(example, Candidates)
    ]


class RewardScorer:
    """Scores rows with the implicit reward of a policy; loads the models, one at a time.

    Args:
        config: its model, length, reference, beta and batch size are used.
        source: the rows, as `Candidates`.
        adapter_path: adapter folder to load onto the model.
        length_normalise: whether rewards are divided by the completion's tokens.
        model: a model in memory instead of `config.model`.
        tokenizer: of the model in memory.
        on_status: receives what is being done while the models are loaded.
        use_path_cache: whether the model is as in its files, so that how it can be run may be read from the disk;
            default: if it is loaded here.

    Attributes:
        scorer_digest: of everything that the rewards depend on beside the rows.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: ExampleSource,
        adapter_path: str | Path | None = None,
        length_normalise: bool = False,
        model: nn.Module | None = None,
        tokenizer: Any = None,
        on_status: Callable[[str], None] = lambda text: None,
        use_path_cache: bool | None = None,
    ) -> None:
        config = config_for_adapters(config, [adapter_path])
        self.loss, self.length_normalise = preference_loss_from_config(config), length_normalise
        if self.loss.needs_reward_head:
            config = resolve_loss_settings(config, self.loss)  # there is no reference
            if length_normalise:
                hint = "Leave it out: a reward model's rewards are not sums over tokens."
                raise UserError("the adapter is a reward model", field="length_normalise", hint=hint)
        self.config = config
        tokenizer = tokenizer or load_tokenizer(config.model)
        encoder = ExampleEncoder.from_config(config, tokenizer)
        self.examples = EncodedExamples(source, encoder)
        self.examples.usable_indices()  # what can't be encoded is reported before any model is loaded
        keep_weights_resident()
        reference_fingerprint, self._precomputed = None, dict[int, np.ndarray]()
        if config.reference not in POLICY_REFERENCES:
            reference_fingerprint = self._precompute(load_reference_model(config, tokenizer))
            mx.clear_cache()  # the reference model's memory is for the policy
        use_cache = model is None if use_path_cache is None else use_path_cache
        model = load_model(config.model).model if model is None else model
        check_vocabulary(model, tokenizer)
        network: Network
        if self.loss.needs_reward_head:
            network, base_tensors = load_reward_network(model, str(adapter_path), use_cache=use_cache), {}
        else:
            base_tensors = apply_adapter(model, adapter_path)
            network = Network.from_model(model, use_cache=use_cache, on_progress=on_status)
        self.memory_model = MemoryModel(network)
        self._reference: ReferencePolicy = NoReference()
        if config.reference in ("initial", "base"):
            self._reference = reference = CachedReference(network, base_tensors, config.model)
            reference_fingerprint = reference.cache.fingerprint
        settings = {
            "policy": fingerprint(network),
            "reference": reference_fingerprint,
            "beta": self.loss.settings.get("beta"),
            "length_normalise": length_normalise,
            **{name: getattr(config, name) for name in ("batch_size", "max_length", "overlong", "raw")},
            "chat_template": getattr(tokenizer, "chat_template", None),
            **config.columns,
            **_rendering_settings(config),
        }
        self.scorer_digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()

    def score_batches(self, start: int = 0) -> Iterator[list[ScoredRow]]:
        """Score the rows from index `start` on, and yield them a batch at a time."""
        order = list(self._order(start))
        batches = row_batches(self.examples, order, self.memory_model)
        measured = measure(
            batches,
            self.memory_model.network,
            reference=lambda _, micro, policy_sums: self._reference.sums(micro, policy_sums),
        )
        for indices, measurements in zip(order, measured, strict=True):
            rewards = {measurement.index: self._rewards(measurement) for measurement in measurements}
            yield [ScoredRow(self._candidates(index), rewards.get(index)) for index in map(int, indices)]

    def _order(self, start: int = 0) -> Iterator[np.ndarray]:
        return index_batches(np.arange(start, len(self.examples)), self.config.batch_size)

    def _precompute(self, reference: CachedReference) -> str:
        """Compute the log-probs of all rows under another model. Returns its fingerprint."""
        for batch in row_batches(self.examples, self._order(), MemoryModel(reference.network)):
            self._precomputed |= by_example(batch, [reference.sums(micro) for micro in batch.micro_batches])
        return reference.cache.fingerprint

    def _rewards(self, measurement: ExampleMeasurement) -> np.ndarray:
        """[completions] of a row."""
        reference = self._precomputed.get(measurement.index, measurement.reference_logps)
        rewards = self.loss.rewards(measurement.logps, reference, measurement.lengths)
        return rewards / measurement.lengths if self.length_normalise else rewards

    def _candidates(self, index: int) -> Candidates:
        candidates = self.examples.source[index]
        assert isinstance(candidates, Candidates)
        return candidates


def _rendering_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings that change tokens, if they are not the defaults: the digest is that of earlier versions."""
    settings = {"chat_template_kwargs": config.chat_template_kwargs, "train_on": config.train_on}
    defaults = TrainConfig()
    return {name: value for name, value in settings.items() if value != getattr(defaults, name)}


def _reward_metrics(row: ScoredRow) -> list[float]:
    """The `REWARD_METRICS` of a row; NaN for those that it does not have."""
    rewards, num_preferred = row.rewards, row.candidates.num_preferred
    if rewards is None:
        return [np.nan] * len(REWARD_METRICS)
    if num_preferred is None:
        return [np.nan] * 4 + [rewards.max() if len(rewards) > 1 else np.nan, rewards.mean()]
    chosen, rejected = rewards[:num_preferred].min(), rewards[num_preferred:].max()
    return [chosen, rejected, chosen > rejected, chosen - rejected, np.nan, np.nan]
