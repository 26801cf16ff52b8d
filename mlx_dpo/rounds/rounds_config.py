"""The settings of `rounds`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.labeling.label_settings import LabelSettings
from mlx_dpo.sampling.completions import SamplingParams

RoundReference = Literal["previous", "base"]
SEED_STEP = 1_000_003  # between the seeds of rounds; larger than a number of prompts, whose seeds follow each other
SET_BY_ROUNDS = ("data", "adapter_path", "init_adapter", "reference")  # settings of training that differ by round


@dataclass(frozen=True)
class RoundsConfig:
    """What `train_rounds` does. Checked when constructed.

    Attributes:
        training: settings of training. Its model is the base, its `init_adapter` the policy to start from, if there is
            one, and its `valid_data` the held-out pairs; data, adapter path and reference are those of the round.
        prompts: file of the prompts to sample completions of, in every round.
        output_dir: folder of the rounds.
        rounds: most rounds.
        n: completions of each prompt.
        reference: the reference of DPO: the policy that the round starts with, or the base model.
        sampling: how completions are sampled. Its seed is that of the first round, and of the evaluations.
        labelling: which pairs are made of them.
        eval_prompts: file of prompts to evaluate policies on; None: some of `prompts` are set aside for that.
        num_eval_prompts: how many are set aside, at most a tenth.
        max_calls: budget of calls of the judge, for one call of `train_rounds`; None: no limit.
        early_stop: stop after a round whose win rate does not rise.

    Raises:
        UserError: settings contradict each other.
    """

    training: TrainConfig
    prompts: str
    output_dir: Path
    rounds: int = 3
    n: int = 8
    reference: RoundReference = "previous"
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0))
    labelling: LabelSettings = field(default_factory=LabelSettings)
    eval_prompts: str | None = None
    num_eval_prompts: int = 64
    max_calls: int | None = None
    early_stop: bool = True

    def __post_init__(self) -> None:
        if self.n < 2:
            raise UserError("needs at least 2 completions, of which one is better", field="n")
        if self.rounds < 1:
            raise UserError("must be at least 1", field="rounds")
        if self.sampling.temperature == 0:
            hint = "Without it, all completions of a prompt are equal."
            raise UserError("must be above 0", field="temperature", hint=hint)
        if self.labelling.format != "pairs":
            raise UserError("rounds are trained on pairs", field="format")
        if "-" in (self.training.valid_data, self.prompts, self.eval_prompts):
            raise UserError("stdin can't be read again in every round", hint="Name a file.")
        if self.training.on_policy:
            hint = "`mlx-dpo train --on-policy` samples in every step; rounds sample before they train."
            raise UserError("does not apply to rounds", field="on_policy", hint=hint)
        if self.training.fine_tune_type == "full" and self.reference == "base":
            raise UserError("a full fine-tune's base is not in memory", field="reference", hint="Use previous.")

    def training_of_round(self, data: Path, adapter_path: Path, start: str | None) -> TrainConfig:
        """The settings of a round's training.

        Args:
            data: its pairs.
            adapter_path: the folder to write.
            start: adapter of the policy to start from; None for the model itself.
        """
        reference = "initial" if self.reference == "previous" else "base"
        return self.training.replace(
            data=str(data), adapter_path=str(adapter_path), init_adapter=start, reference=reference
        )

    def seed_of_round(self, number: int) -> int:
        """The seed of the sampling in a round, counted from 1."""
        return self.sampling.seed + (number - 1) * SEED_STEP

    def identity(self, judge: str) -> dict[str, Any]:
        """All that the results depend on, as JSON values, but for the contents of files and the number of rounds.

        Args:
            judge: the identity of the judge.
        """
        names = [field.name for field in fields(TrainConfig) if not field.metadata["free"]]
        training = {name: getattr(self.training, name) for name in names if name not in SET_BY_ROUNDS}
        return {
            **training,
            "judge": judge,
            "init_adapter": self.training.init_adapter,
            "n": self.n,
            "reference": self.reference,
            "num_eval_prompts": self.num_eval_prompts,
            **_prefixed("sampling", asdict(self.sampling)),
            **_prefixed("labelling", asdict(self.labelling)),
        }


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}
