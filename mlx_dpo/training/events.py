"""Events of a training run, one frozen dataclass each; `Listener.handle` passes each to the hook of its kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot

Metrics = dict[str, float]


@dataclass(frozen=True)
class RunPlan:
    """The size of a run that is about to start; `mlx-dpo plan` makes a `RunEstimate` instead.

    Attributes:
        run: the run's folder.
        steps: optimizer steps of the whole run.
        first_step: steps that a resumed run has already done; 0 for a new run.
        num_examples: number of examples, by "train" and "held_out".
        example_kind: what an example is called: "pairs", "completions" or, if they are sampled, "prompts".
        steps_per_epoch: steps in which every example is used once; 0 if the batch source has no epochs.
        steps_per_eval: steps between evaluations; 0: only before the first step and after the last.
        memory_limit: bytes that may be used.
        trainable_parameters: number of parameters that are trained.
        total_parameters: number of parameters of the model.
        ranks: processes that train together.
        gradient_bytes: bytes that each rank sends in a step to sum gradients.
        evaluates_first: whether a resumed run repeats the evaluation at `first_step`, which was not finished.
    """

    run: Path
    steps: int
    first_step: int
    num_examples: dict[str, int]
    example_kind: str
    steps_per_epoch: int
    steps_per_eval: int
    memory_limit: int
    trainable_parameters: int
    total_parameters: int
    ranks: int = 1
    gradient_bytes: int = 0
    evaluates_first: bool = False


@dataclass(frozen=True)
class TrainResult:
    """Result of a finished run.

    Attributes:
        run: the run's folder, which is an mlx-lm adapter folder.
        steps: optimizer steps done.
        seconds: wall time of this process's part of the run.
        before: held-out metrics before the first step; empty without held-out examples.
        after: held-out metrics after the last step; empty without held-out examples.
        notes: what the length limit and the chat template did to the examples, as sentences.
    """

    run: Path
    steps: int
    seconds: float
    before: Metrics
    after: Metrics
    notes: list[str] = field(default_factory=list)

    def to_mapping(self) -> dict[str, Any]:
        """Return the result as plain values, for JSON."""
        return {**asdict(self), "run": str(self.run)}


@dataclass(frozen=True)
class Event:
    """Something that happened in a run. Its fields are, in order, the arguments of the hook.

    Attributes:
        hook: name of the `Listener` method that receives the event.
    """

    hook: ClassVar[str]


@dataclass(frozen=True)
class Preparing(Event):
    """A step of the preparation begins, such as loading the model."""

    hook = "on_preparing"
    text: str


@dataclass(frozen=True)
class PreparationProgress(Event):
    """Some of a step of the preparation is done."""

    hook = "on_preparation_progress"
    done: float
    total: float


@dataclass(frozen=True)
class RunStart(Event):
    """The first optimizer step is about to be taken."""

    hook = "on_run_start"
    plan: RunPlan


@dataclass(frozen=True)
class Step(Event):
    """An optimizer step is done."""

    hook = "on_step"
    step: int
    metrics: Metrics


@dataclass(frozen=True)
class RolloutsUsed(Event):
    """An on-policy step is done: what was sampled and judged for it, a mapping for each prompt."""

    hook = "on_rollouts"
    step: int
    rollouts: list[dict[str, Any]]


@dataclass(frozen=True)
class MetricsReport(Event):
    """`steps_per_report` steps are done: their mean metrics."""

    hook = "on_metrics"
    metrics: Metrics


@dataclass(frozen=True)
class EvaluationProgress(Event):
    """Some of the held-out examples are measured."""

    hook = "on_evaluation_progress"
    done: int
    total: int


@dataclass(frozen=True)
class EvaluationMetrics(Event):
    """An evaluation is done: its mean metrics."""

    hook = "on_evaluation_metrics"
    metrics: Metrics


@dataclass(frozen=True)
class SnapshotTaken(Event):
    """An evaluation can be looked into, example by example, with the policy in memory.

    A supervised run does not forward it to the parent process, since it holds the model.
    """

    hook = "on_evaluation_snapshot"
    snapshot: EvalSnapshot


@dataclass(frozen=True)
class EvaluationRecorded(Event):
    """All listeners have processed an evaluation's snapshot; both times are totals of this process."""

    hook = "on_evaluation_recorded"
    reference_seconds: float
    sampling_seconds: float


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint is on disk."""

    hook = "on_checkpoint_saved"
    step: int
    folder: Path


@dataclass(frozen=True)
class Note(Event):
    """A sentence for the user."""

    hook = "on_note"
    text: str


@dataclass(frozen=True)
class RunEnd(Event):
    """The run is over, whether it finished, failed or never began."""

    hook = "on_run_end"
