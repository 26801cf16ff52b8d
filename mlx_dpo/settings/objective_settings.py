"""Settings of the loss and of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlx_dpo.config_fields import setting

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The loss and the reference. The attributes are described by their help texts."""

    loss: str = setting(
        "sigmoid",
        "Objective",
        "sigmoid is DPO; `mlx-dpo losses` lists all. A sum: sigmoid=0.8,bco_pair=0.2,sft=1. Your own: FILE.py:NAME.",
    )
    # None below: the default in the signature of the loss; `mlx-dpo losses` and --help print it.
    beta: float | None = setting(
        None, "Objective", "Scale of the rewards (0.01 to 0.5). With a smaller one the policy moves further.", low=1e-6
    )
    label_smoothing: float | None = setting(
        None,
        "Objective",
        "Assumed share of flipped pairs, below 0.5; with sigmoid: conservative DPO.",
        low=0,
        high=0.4999,
    )
    f_divergence: Divergence | None = setting(
        None, "Objective", "Divergence that keeps the policy close to the reference; reverse_kl is DPO's."
    )
    f_alpha_divergence_coef: float | None = setting(
        None, "Objective", "Coefficient of the alpha divergence: 1 is the reverse KL, 0 the forward KL.", low=0, high=1
    )
    rpo_alpha: float = setting(
        0.0,
        "Objective",
        "Weight of the chosen completions' negative log-likelihood, added to the loss (the same as ,sft=ALPHA).",
        low=0,
    )
    discopop_tau: float | None = setting(None, "Objective", "discopop: temperature of its mixture.", low=1e-3, high=1)
    dpop_lambda: float | None = setting(
        None, "Objective", "dpop: weight of the penalty if the chosen completion becomes less likely.", low=0
    )
    rdpo_alpha: float | None = setting(
        None, "Objective", "rdpo: reward that each token of length is assumed to earn by itself.", low=0
    )
    beta_dpo_alpha: float | None = setting(
        None, "Objective", "beta_dpo: how much beta follows the batch's margin.", low=0
    )
    beta_dpo_momentum: float | None = setting(
        None, "Objective", "beta_dpo: momentum of the moving mean margin.", low=0, high=0.9999
    )
    odpo_alpha: float | None = setting(None, "Objective", "odpo: weight of the log of the score difference.", low=0)
    tdpo_alpha: float | None = setting(
        None, "Objective", "tdpo2: weight of the difference of the two completions' KLs.", low=0
    )
    desirable_weight: float | None = setting(
        None, "Objective", "kto, bco, apo_zero_unpaired: weight of completions labelled true.", low=0
    )
    undesirable_weight: float | None = setting(
        None,
        "Objective",
        "Weight of completions labelled false. Balanced: weight times count is equal for both labels.",
        low=0,
    )
    simpo_gamma: float | None = setting(
        None, "Objective", "simpo: target reward margin (a quarter to half of beta).", low=0
    )
    cpo_alpha: float | None = setting(
        None, "Objective", "cpo: weight of the likelihood of the chosen completions.", low=0
    )
    xpo_alpha: float | None = setting(
        None, "Objective", "xpo: weight of the bonus for exploring, the log-prob of the reference's own answers.", low=0
    )
    center_rewards_coefficient: float | None = setting(
        None, "Objective", "reward: weight of the squared sum of a pair's rewards, which keeps them around 0.", low=0
    )
    ld_alpha: float | None = setting(
        None,
        "Objective",
        "LD-DPO: weight of tokens beyond the length of the pair's shorter completion; lower gives shorter completions.",
        low=0,
        high=1,
    )
    use_weighting: bool = setting(
        False, "Objective", "WPO: weight each pair by how likely its completions are under the policy."
    )
    reference: str = setting(
        "initial", "Objective", "initial: the starting policy. base: no adapter. none: no reference. Or a model."
    )
    reference_sync_steps: int = setting(
        0, "Objective", "TR-DPO: steps between updates of the reference towards the policy; 0 for none.", low=0
    )
    reference_mixup: float | None = setting(
        None,
        "Objective",
        "With --reference-sync-steps: weight of the policy in the updated reference. Default: 0.6.",
        low=1e-6,
        high=1,
    )
