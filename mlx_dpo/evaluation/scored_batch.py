"""An optimizer batch with the log-probs of policy and reference: the inputs of a loss, and the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Arrays, Communicator
from mlx_dpo.evaluation.metrics import METRICS, completion_metrics, pair_metrics, reward_model_metrics
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch
from mlx_dpo.forward.completion_logps import CompletionLogps, LogpOptions
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives import LabelledLogps, PairLogps, WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps


def scoring_options(loss: WeightedLoss, reference: ReferenceLogps, micro: MicroBatch) -> LogpOptions:
    """Return keyword arguments for `Network.logps`: the extra outputs that a loss needs.

    Args:
        loss: the loss.
        reference: the reference, which is run if the loss needs more of it than sums.
        micro: the micro-batch that `Network.logps` will run.
    """
    policy = reference.reference_policy
    return {
        "collision_logps": loss.use_weighting,
        "reference_hidden_states": policy.hidden_states(micro) if loss.needs_token_kls else None,
        "reference_token_logps": policy.token_logps(micro) if loss.needs_kl_scores else None,
    }


@dataclass(frozen=True)
class BatchStatistics:
    """Statistics of a whole optimizer batch that a loss needs before any of it is run with a gradient.

    Attributes:
        mean_chosen_tokens: tokens of chosen or desirable completions, per example.
        kl: KL(policy || reference) in nats, at least 0, estimated on mismatched completions; None where not needed.
    """

    mean_chosen_tokens: float
    kl: float | None

    @classmethod
    def compute(
        cls,
        batch: OptimizerBatch,
        network: Network,
        reference: ReferenceLogps,
        communicator: Communicator = SINGLE_PROCESS,
    ) -> BatchStatistics:
        """Compute them; runs the mismatched completions, if any.

        Args:
            batch: this rank's share of the batch.
            network: the policy's network.
            reference: the reference.
            communicator: ranks that share the batch.
        """
        num_tokens = sum(
            int(length)
            for micro in batch.micro_batches
            for example, length in zip(micro.examples, micro.trained_lengths, strict=False)  # not the rejected ones
            if _is_desirable(example)
        )
        with without_dropout(network.model):
            log_ratios = [
                network.logps(micro).sums - reference.reference_policy.sums(micro)
                for micro in batch.mismatched_micro_batches
            ]
        shards = communicator.gather_shards(
            {"tokens": np.array([num_tokens]), "log_ratios": np.concatenate([np.zeros(0), *log_ratios])}
        )
        all_log_ratios = np.concatenate([shard["log_ratios"] for shard in shards])
        kl = max(0.0, float(all_log_ratios.mean())) if len(all_log_ratios) else None
        return cls(sum(int(shard["tokens"][0]) for shard in shards) / batch.size, kl)


def _is_desirable(example: Example) -> bool:
    return not (isinstance(example, Completion) and example.desirable is False)


def _win_rate(example: Example) -> float:
    """The judge's verdict on a completion, else its label."""
    win_rate = example.win_rate if isinstance(example, Completion) else None
    return float(_is_desirable(example)) if win_rate is None else win_rate


def completion_outputs(logps: CompletionLogps, reference: np.ndarray, loss: WeightedLoss) -> Arrays:
    """Return the outputs of a micro-batch that a loss needs, each [completions], named as in `ScoredBatch.columns`.

    Args:
        logps: of the policy.
        reference: [completions] log-probs of the reference, nats.
        loss: the loss.
    """
    outputs = {"logps": logps.sums, "reference": reference}
    if loss.ld_alpha != 1:
        outputs["plain"] = logps.unweighted_sums
    if loss.needs_token_kls:
        outputs["kls"] = logps.kls
    if loss.needs_kl_scores:
        outputs["kl_scores"] = logps.kl_scores
    if loss.use_weighting:
        outputs["alignments"] = logps.alignments
    return outputs


def example_columns(micros: Sequence[MicroBatch], outputs: Sequence[Arrays]) -> Arrays:
    """Return the columns of a `ScoredBatch`; none without micro-batches.

    Args:
        micros: the micro-batches.
        outputs: the outputs of each, [completions, ...].
    """
    if not micros:
        return {}
    lengths = [micro.trained_lengths.astype(np.float64) for micro in micros]
    columns = {name: _by_example(micros, [arrays[name] for arrays in outputs]) for name in outputs[0]}
    columns["tokens"] = _by_example(micros, lengths)
    examples = [example for micro in micros for example in micro.examples]
    if micros[0].completions_per_example == 1:
        desirable = [_is_desirable(example) for example in examples]
        win_rates = [_win_rate(example) for example in examples]
        return columns | {"desirable": np.array(desirable, np.bool_), "win_rates": np.array(win_rates, np.float64)}
    pairs = [example for example in examples if isinstance(example, Pair)]
    gaps = [pair.scores[0] - pair.scores[1] if pair.scores else np.nan for pair in pairs]
    return columns | {
        "margins": np.array([pair.margin or 0.0 for pair in pairs]),
        "score_gaps": np.array(gaps, np.float64),
        "chosen_is_reference": np.array([pair.chosen_is_reference for pair in pairs], np.float64),
    }


@dataclass(frozen=True)
class ScoredBatch:
    """Examples of an optimizer batch with their log-probs, in the order of the micro-batches they came in.

    Attributes:
        columns: arrays of [examples] or [examples, completions], of pairs chosen and rejected, by name:
            `logps`, `reference`: float64 nats, summed over the completion's tokens.
            `tokens`: the completion's length, trained tokens only.
            `plain`: log-probs with equal weights for all tokens; only if `logps` weights tokens (LD-DPO).
            `kls`: KL(reference || policy) summed over positions, nats; only if the loss needs it.
            `kl_scores`: see `CompletionLogps.kl_scores`; only if the loss needs them.
            `alignments`: WPO's weights; only if pairs are weighted.
            `margins`, `score_gaps`: of pairs, the row's target reward margin, or 0; chosen - rejected score of the
                row, or NaN.
            `chosen_is_reference`: of pairs, 1 if the reference has written the chosen completion, else 0.
            `desirable`, `win_rates`: of single completions, their label, and how often they win by a judge's verdict.
        statistics: of the whole optimizer batch.
        loss: the loss.
    """

    columns: Arrays
    statistics: BatchStatistics
    loss: WeightedLoss

    @property
    def weights(self) -> np.ndarray | None:
        """[pairs] weights of the pairs, the product over their completions; None where all are 1."""
        return self.columns["alignments"].prod(axis=1) if "alignments" in self.columns else None

    @property
    def loss_inputs(self) -> PairLogps | LabelledLogps:
        """The batch as loss functions take it."""
        kl, columns, mean_tokens = self.statistics.kl or 0.0, self.columns, self.statistics.mean_chosen_tokens
        logps, reference, tokens = self._completions
        if "desirable" in columns:
            kl_scores = columns.get("kl_scores")
            return LabelledLogps.from_numpy(
                logps,
                reference,
                tokens,
                columns["desirable"],
                mean_tokens,
                kl=kl,
                win_rates=_float32(columns["win_rates"]),
                kl_scores=None if kl_scores is None else _float32(kl_scores[:, 0]),
            )
        chosen_kls, rejected_kls = _chosen_and_rejected(columns.get("kls"))
        chosen_kl_scores, rejected_kl_scores = _chosen_and_rejected(columns.get("kl_scores"))
        chosen_unweighted, rejected_unweighted = _chosen_and_rejected(columns.get("plain"))
        return PairLogps.from_numpy(
            logps,
            reference,
            tokens,
            mean_tokens,
            target_margins=_float32(columns["margins"]),
            score_gaps=_float32(columns["score_gaps"]),
            chosen_kls=chosen_kls,
            rejected_kls=rejected_kls,
            chosen_kl_scores=chosen_kl_scores,
            rejected_kl_scores=rejected_kl_scores,
            chosen_is_reference=_float32(columns["chosen_is_reference"]),
            chosen_unweighted=chosen_unweighted,
            rejected_unweighted=rejected_unweighted,
            kl=kl,
        )

    @property
    def _completions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[completions] log-probs of policy and reference, and lengths; all chosen before all rejected."""
        columns = [self.columns[name] for name in ("logps", "reference", "tokens")]
        logps, reference, tokens = (values.T.reshape(-1) for values in columns)
        return logps, reference, tokens

    def metrics(self, losses: mx.array) -> np.ndarray:
        """Compute the metrics of each example.

        Args:
            losses: [examples].

        Returns:
            [examples, `metric_names` of the loss], NaN if an example has no such number.
        """
        logps, reference, tokens = self._completions
        rewards = self.loss.rewards(logps, reference, tokens)
        if self.loss.needs_reward_head:
            return reward_model_metrics(losses, rewards)
        if "desirable" not in self.columns:
            table = pair_metrics(losses, logps, rewards)
        else:
            if self.loss.likelihood_only:  # its rewards of single completions mean nothing
                rewards = np.full_like(rewards, np.nan)
            table = completion_metrics(losses, logps, rewards, self.columns["desirable"])
        if self.statistics.kl is not None:
            table[:, METRICS.index("kl")] = self.statistics.kl
        return table


def split_by_micro_batch(gradients: Arrays, micros: Sequence[MicroBatch], local: slice) -> list[Arrays]:
    """Split gradients into those of each micro-batch.

    Args:
        gradients: [completions, ...] by output, of all examples of a batch; all chosen before all rejected.
        micros: this rank's micro-batches.
        local: their examples' place among all.

    Returns:
        For each micro-batch [completions, ...] by output.
    """
    if not micros:
        return []
    ends = np.cumsum([len(micro.batch_indices) for micro in micros])[:-1]
    per_example, parts = micros[0].completions_per_example, {}
    for name, values in gradients.items():
        by_example = values.reshape(per_example, -1, *values.shape[1:])[:, local]
        parts[name] = [part.reshape(-1, *values.shape[1:]) for part in np.split(by_example, ends, axis=1)]
    return [{name: arrays[i] for name, arrays in parts.items()} for i in range(len(micros))]


def _by_example(micros: Sequence[MicroBatch], values: Sequence[np.ndarray]) -> np.ndarray:
    """[examples, completions, ...] of micro-batches' [completions, ...], all chosen before all rejected in each."""
    count = micros[0].completions_per_example
    joined = np.concatenate([array.reshape(count, -1, *array.shape[1:]).swapaxes(0, 1) for array in values])
    return joined.astype(np.float64)


def _chosen_and_rejected(values: np.ndarray | None) -> tuple[mx.array | None, mx.array | None]:
    return (None, None) if values is None else (_float32(values[:, 0]), _float32(values[:, 1]))


def _float32(values: np.ndarray) -> mx.array:
    return mx.array(values.astype(np.float32))
