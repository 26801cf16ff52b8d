"""Which models can be trained on this machine, and how long their pairs may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.discovery.installed_models import InstalledModel
from mlx_dpo.errors import UserError
from mlx_dpo.forward.config_model import model_classes
from mlx_dpo.training.config_planner import ConfigEstimate
from mlx_dpo.training.estimate_cache import cached_estimate

FIT_TOKENS = 1024  # of the pair that a model has to fit with


@dataclass(frozen=True)
class ModelFit:
    """Whether a model can be trained on this machine.

    Attributes:
        model: the model.
        trainable: whether mlx-lm has its type and reads such files, though some may be missing.
        reason: why it can't be trained, or why its memory is not known; None otherwise.
        estimate: the memory of training it with the default settings; None if that is not known.
    """

    model: InstalledModel
    trainable: bool
    reason: str | None = None
    estimate: ConfigEstimate | None = None

    @property
    def fits(self) -> bool | None:
        """Whether a pair of `FIT_TOKENS` tokens fits; None if that is not known."""
        return None if self.estimate is None else self.estimate.lengths[0].fits

    @property
    def longest_pair(self) -> int | None:
        """Tokens of the longest pair that surely fits; 0 if none does; None if that is not known."""
        return None if self.estimate is None else self.estimate.longest_pair

    @property
    def peak(self) -> int | None:
        """Bytes that a step on a pair of `FIT_TOKENS` tokens takes; None if that is not known."""
        return None if self.estimate is None else self.estimate.lengths[0].peak

    def to_mapping(self) -> dict[str, Any]:
        """Return the facts as plain values, for JSON."""
        contents = self.model.contents
        return {
            "name": self.model.name,
            "source": self.model.source.name.lower(),
            "path": str(self.model.path),
            "model_type": contents.model_type,
            "bits": contents.bits,
            "bytes": contents.bytes,
            "complete": contents.problem is None and contents.missing is None,
            "missing": contents.missing,
            "trainable": self.trainable,
            "reason": self.reason,
            "parameters": self.estimate and self.estimate.parameters,
            "peak_bytes": self.peak,
            "fits": self.fits,
            "longest_pair": self.longest_pair,
        }


def model_fit(model: InstalledModel, *, compute: bool = True) -> ModelFit:
    """Find out whether a model can be trained here. No weights are read.

    Args:
        model: the model.
        compute: whether to estimate memory that is not in the cache, which takes seconds for a large model.
    """
    contents = model.contents
    if contents.problem:
        return ModelFit(model, False, contents.problem)
    try:
        model_classes(dict(contents.config), model.name)
    except UserError as error:
        return ModelFit(model, False, error.message)
    config = TrainConfig(model=str(model.path), max_length=FIT_TOKENS)
    try:
        return ModelFit(model, True, estimate=cached_estimate(config, [FIT_TOKENS], compute=compute))
    except UserError as error:
        return ModelFit(model, True, f"memory not known: {error.message}")
    except Exception as error:  # of mlx-lm's model code about an odd config; the other models are to be listed
        return ModelFit(model, True, f"memory not known: {type(error).__name__}: {error}"[:200])


def sort_fits(fits: list[ModelFit]) -> list[ModelFit]:
    """Models by what can be done with them, the best first; those with which the same can be done by name."""

    def order(fit: ModelFit) -> tuple[bool, bool, bool, str]:
        name = fit.model.name.casefold()
        return not fit.trainable, fit.model.contents.missing is not None, fit.fits is False, name

    return sorted(fits, key=order)
