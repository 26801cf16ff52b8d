"""What make_reference.py has TRL run: the settings that all runs share, and each run's own options."""

from dataclasses import dataclass, field
from typing import Any

from inputs import SEED
from trl.experimental.cpo import CPOConfig
from trl.experimental.orpo import ORPOConfig

STEPS, FEW_STEPS = 12, 3

# What every run shares, in TRL's names; a run's own options go on top.
SETTINGS: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "beta": 0.1,
    "label_smoothing": 0.0,
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "train_sampling_strategy": "sequential",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "optim": "adamw_torch",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": None,
    "disable_dropout": True,
    "gradient_checkpointing": False,
    "bf16": False,
    "seed": SEED,
}


@dataclass
class Run:
    """One training run: which policy is the reference ("base" or "initial"), and its DPOConfig options."""

    reference: str = "base"
    options: dict[str, Any] = field(default_factory=dict)


RUNS = {
    "sigmoid": Run(),
    "sigmoid_initial": Run(reference="initial"),
    # Conservative DPO (see the top): (1 - 0.1) L(d) + 0.1 L(-d)
    "label_smoothing": Run(
        options={"loss_type": ["sigmoid", "robust"], "loss_weights": [1.8, -0.8], "label_smoothing": 0.1}
    ),
    "robust": Run(options={"loss_type": ["robust"], "label_smoothing": 0.1}),
}


def few_steps(*loss_types: str, **options: Any) -> Run:
    return Run(options={"loss_type": list(loss_types), "max_steps": FEW_STEPS, **options})


RUNS |= {
    "robust_3": few_steps("robust", label_smoothing=0.3, beta=0.5),
    "hinge": few_steps("hinge"),
    "ipo": few_steps("ipo"),
    "ipo_beta": few_steps("ipo", beta=2.0),
    "exo_pair": few_steps("exo_pair", label_smoothing=1e-3),
    "exo_pair_smooth": few_steps("exo_pair", label_smoothing=0.2, beta=0.5),
    "nca_pair": few_steps("nca_pair"),
    "bco_pair": few_steps("bco_pair", beta=0.3),
    "sppo_hard": few_steps("sppo_hard"),
    "aot": few_steps("aot"),
    "aot_smooth": few_steps("aot", label_smoothing=0.2, beta=0.5),
    "aot_unpaired": few_steps("aot_unpaired"),
    "aot_unpaired_smooth": few_steps("aot_unpaired", label_smoothing=0.2, beta=0.5),
    "apo_zero": few_steps("apo_zero"),
    "apo_down": few_steps("apo_down", beta=0.3),
    "discopop": few_steps("discopop"),
    "discopop_tau": few_steps("discopop", discopop_tau=0.5, beta=0.5),
    "sft": few_steps("sft"),
    "sigmoid_norm": few_steps("sigmoid_norm", beta=5.0),
    "mpo": few_steps("sigmoid", "bco_pair", "sft", loss_weights=[0.8, 0.2, 1.0]),
    "sum": few_steps("aot", "ipo", "apo_zero", loss_weights=[1.0, 0.01, 0.5]),
    "forward_kl": few_steps("sigmoid", f_divergence_type="forward_kl"),
    "js": few_steps("sigmoid_norm", f_divergence_type="js_divergence", beta=5.0),
    "alpha": few_steps("hinge", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3),
    "alpha_half": few_steps("ipo", "sft", f_divergence_type="alpha_divergence"),
}

# Runs of the trainers without a reference: which, and its options.
FREE_RUNS: dict[str, tuple[type, dict[str, Any]]] = {
    "cpo": (CPOConfig, {"loss_type": "sigmoid", "max_steps": FEW_STEPS}),
    "cpo_options": (
        CPOConfig,
        {"loss_type": "sigmoid", "max_steps": FEW_STEPS, "cpo_alpha": 0.3, "label_smoothing": 0.1, "beta": 0.4},
    ),
    "simpo": (CPOConfig, {"loss_type": "simpo", "max_steps": FEW_STEPS, "cpo_alpha": 0.0, "beta": 2.0}),
    "simpo_options": (
        CPOConfig,
        {"loss_type": "simpo", "max_steps": FEW_STEPS, "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 1.4}
        | {"label_smoothing": 0.1},
    ),
    "orpo": (ORPOConfig, {"max_steps": 1}),
    "orpo_beta": (ORPOConfig, {"max_steps": 1, "beta": 0.7}),
}

# Token weights (LD-DPO) and pair weights (WPO).
WEIGHTING_RUNS = {
    "ld": few_steps("sigmoid", ld_alpha=0.5),
    "ld_ipo": few_steps("ipo", ld_alpha=0.2),
    "ld_sigmoid_norm": few_steps("sigmoid_norm", ld_alpha=0.2, beta=5.0),
    "ld_sft": few_steps("sigmoid", "sft", ld_alpha=0.5),
    "wpo": few_steps("sigmoid", use_weighting=True),
    "wpo_sum": few_steps("sigmoid", "bco_pair", loss_weights=[0.8, 0.2], use_weighting=True),
    "wpo_ld": few_steps("sigmoid", use_weighting=True, ld_alpha=0.5),
}

# Options of KTOTrainer: each is run on the pairs and, as labelled_*, on labelled.jsonl.
UNPAIRED_RUNS: dict[str, dict[str, Any]] = {
    "kto": {"loss_type": "kto"},
    "kto_weighted": {"loss_type": "kto", "beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
    "apo_zero_unpaired": {"loss_type": "apo_zero_unpaired"},
}

DEMONSTRATIONS_RUN = {"loss_type": "nll", "completion_only_loss": True, "max_steps": FEW_STEPS}
