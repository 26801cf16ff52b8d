"""All objectives, by the names that `--loss` takes, TRL's where TRL has them."""

from __future__ import annotations

import difflib

from mlx_dpo.errors import UserError
from mlx_dpo.objectives import paired, unpaired
from mlx_dpo.objectives import per_completion as sides
from mlx_dpo.objectives import reference_free as likelihood
from mlx_dpo.objectives.custom_loss import load_custom_loss
from mlx_dpo.objectives.objective import LossFunction

LOSS_FUNCTIONS: dict[str, LossFunction] = {
    one.name: one
    for one in (
        paired.sigmoid,
        paired.robust,
        paired.hinge,
        paired.ipo,
        paired.sigmoid_norm,
        paired.exo_pair,
        paired.discopop,
        paired.dpop,
        paired.rdpo,
        paired.odpo,
        paired.beta_dpo,
        paired.tdpo,
        paired.tdpo2,
        sides.nca_pair,
        sides.bco_pair,
        sides.sppo_hard,
        sides.cal_dpo,
        sides.apo_zero,
        sides.apo_down,
        sides.aot,
        sides.aot_unpaired,
        likelihood.simpo,
        likelihood.cpo,
        likelihood.orpo,
        unpaired.kto,
        unpaired.bco,
        unpaired.apo_zero_unpaired,
        unpaired.sft,
    )
}
LOSS_SETTINGS = tuple(dict.fromkeys(knob for one in LOSS_FUNCTIONS.values() for knob in one.settings))
LOSS_ALIASES = {"dpo": "sigmoid"}


def find_loss_function(name: str) -> LossFunction:
    """The objective of that name, or `path/to/file.py:name`. Raises `UserError` naming the nearest one."""
    if ".py:" in name:
        return load_custom_loss(name)
    known = [*LOSS_FUNCTIONS, *LOSS_ALIASES]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean `{near[0]}`? " if near else ""
        hint += "`mlx-dpo losses` lists them; one of your own is path/to/file.py:name."
        raise UserError(f"no objective is called {name!r}", field="loss", hint=hint)
    return LOSS_FUNCTIONS[LOSS_ALIASES.get(name, name)]
