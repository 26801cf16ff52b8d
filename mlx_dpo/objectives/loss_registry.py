"""All losses by the names that `--loss` takes, TRL's if TRL has them. Modules in `losses/` are discovered."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pkgutil import iter_modules

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.objectives import losses
from mlx_dpo.objectives.custom_loss import load_custom_loss
from mlx_dpo.objectives.loss_function import LossFunction, declared_loss
from mlx_dpo.utils.formatting import did_you_mean

# The order of `mlx-dpo losses`; losses that are not listed follow alphabetically.
ORDER = """
    sigmoid robust hinge ipo sigmoid_norm exo_pair discopop dpop rdpo odpo beta_dpo tdpo tdpo2 nca_pair bco_pair
    sppo_hard cal_dpo apo_zero apo_down aot aot_unpaired simpo cpo orpo kto bco apo_zero_unpaired sft
    xpo nash_md ppo rloo reward
""".split()  # noqa: SIM905
LOSS_ALIASES = {"dpo": "sigmoid"}


def declared_losses() -> dict[str, LossFunction]:
    """Every loss of the modules in `losses/`, by name, in the order of `mlx-dpo losses`.

    Raises:
        TypeError: a setting of a loss is not a field of `TrainConfig`, so it would have no flag.
    """
    modules = [import_module(f"{losses.__name__}.{module.name}") for module in iter_modules(losses.__path__)]
    declared = [loss for module in modules for value in vars(module).values() if (loss := declared_loss(value))]
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for loss in declared:
        if unknown := sorted(set(loss.settings) - fields):
            raise TypeError(
                f"the loss {loss.name} has settings that are not fields of TrainConfig: {', '.join(unknown)}. "
                "Add them to mlx_dpo/settings/objective_settings.py with the default None."
            )
    rank = {name: i for i, name in enumerate(ORDER)}
    return {loss.name: loss for loss in sorted(declared, key=lambda loss: (rank.get(loss.name, len(ORDER)), loss.name))}


LOSS_FUNCTIONS: dict[str, LossFunction] = declared_losses()
LOSS_SETTINGS = tuple(dict.fromkeys(name for loss in LOSS_FUNCTIONS.values() for name in loss.settings))


def find_loss_function(name: str) -> LossFunction:
    """Find a loss by its name, or load the user's own from `path/to/file.py:name`.

    Raises:
        UserError: there is no such loss; its hint names the closest one.
    """
    if ".py:" in name:
        return load_custom_loss(name)
    if loss := LOSS_FUNCTIONS.get(LOSS_ALIASES.get(name, name)):
        return loss
    suggestion = did_you_mean(name, [*LOSS_FUNCTIONS, *LOSS_ALIASES])
    hint = f"{suggestion} `mlx-dpo losses` lists them; your own loss is path/to/file.py:name.".lstrip()
    raise UserError(f"there is no loss {name!r}", field="loss", hint=hint)


def only_raises_likelihood(text: str) -> bool:
    """Whether all losses of a `--loss` text are known to raise likelihoods only, as `WeightedLoss.likelihood_only`.

    The user's own losses are not loaded, and count as others.
    """
    names = [term.partition("=")[0].strip() for term in text.split(",")]
    functions = [LOSS_FUNCTIONS.get(LOSS_ALIASES.get(name, name)) for name in names]
    return all(function is not None and function.unpaired and not function.uses_reference for function in functions)
