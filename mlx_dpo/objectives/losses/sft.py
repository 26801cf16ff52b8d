"""Supervised fine-tuning, alone or as a term of a sum."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import LabelledLogps


@declare_loss(uses_reference=False, supports_f_divergence=True, unpaired=True)
def sft(batch: LabelledLogps) -> mx.array:
    """Supervised fine-tuning on desirable completions; a batch's mean is over tokens, as in TRL.

    Formula:
        -log pi(y) if the label is true or there is none, 0 if it is false; a batch's mean is over tokens

    Paper:
        2203.02155 Ouyang et al.

    When to use:
        Before DPO, on the chosen completions or on rows of messages; or added to another loss to keep them likely.
        Alone on pairs, it runs the reference for its reward metrics only: --reference none avoids that

    Args:
        batch: log-probs of labelled completions; every array is [completions].

    Returns:
        [completions], whose mean over an optimizer batch is the mean over its desirable tokens.

    Example:
        >>> sft(example_pairs().as_labelled())
        array([15.2, 16.8, 0, 0], dtype=float32)
    """
    return -batch.desirable * batch.unweighted_logps / max(batch.mean_desirable_tokens, 1e-9)
