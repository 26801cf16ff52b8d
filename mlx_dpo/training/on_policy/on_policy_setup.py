"""Open the prompts and the judge of an on-policy run, and make its batch source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.chat_rendering import PromptSource
from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.examples import Prompt
from mlx_dpo.data.prompt_files import read_prompts
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.evaluation.implicit_rewards import adapter_rewards
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import Policy
from mlx_dpo.judges.function_judge import judge_from_function
from mlx_dpo.judges.judge import Judge
from mlx_dpo.judges.judge_registry import load_judge
from mlx_dpo.judges.reward_model_judge import RewardModelJudge
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.training.batch_source import ShuffledDataset
from mlx_dpo.training.events import RolloutsUsed
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.on_policy.on_policy_checks import DEFAULT_MIXTURE_COEF, num_replayed
from mlx_dpo.training.on_policy.prompt_stream import PromptStream
from mlx_dpo.training.on_policy.rollout import Rollout
from mlx_dpo.training.on_policy.rollout_record import rollout_record
from mlx_dpo.training.on_policy.rollout_sampler import RolloutSampler
from mlx_dpo.training.on_policy.rollout_source import RolloutSettings, RolloutSource
from mlx_dpo.training.on_policy.sampled_source import OnRollouts
from mlx_dpo.utils.progress import Progress

Prompts = Sequence[TextOrMessages | PromptSource]
JudgeOrFunction = Judge | Callable[..., Any]


@dataclass(frozen=True)
class OnPolicyInputs:
    """What an on-policy run samples and who judges it.

    Attributes:
        prompts: the prompts.
        judge: compares their completions.
        encoder: has the tokenizer.
    """

    prompts: PromptStream
    judge: Judge
    encoder: ExampleEncoder

    @property
    def digest(self) -> str:
        """Identifies prompts and judge; settings are compared on their own when a run is resumed."""
        return f"{self.prompts.digest} {self.judge.identity or self.judge.name}"


def open_on_policy(
    config: TrainConfig,
    encoder: ExampleEncoder,
    prompts: Prompts | None,
    judge: JudgeOrFunction | None,
    progress: Progress,
) -> OnPolicyInputs:
    """Read the prompts and load the judge.

    Args:
        config: the run's settings, checked by `check_on_policy`.
        encoder: gives the prompts' token ids.
        prompts: prompts in memory, instead of `config.prompts`: texts, lists of messages, or examples.
        judge: a judge in memory, instead of `config.judge`, or a function of (prompt, answer) that returns a score, or
            of (prompt, first, second) that returns 1, 0 or 0.5.
        progress: receives what is being read.

    Raises:
        UserError: a file can't be read, or the judge does not work.
        RowError: a row has no prompt, or it can't be rendered.
    """
    if prompts is None:
        progress.begin(f"Reading {config.prompts}")
        sources: list[PromptSource] = list(read_prompts(config.prompts or ""))
    else:
        sources = [Prompt(prompt) if isinstance(prompt, (str, list)) else prompt for prompt in prompts]
    if not sources:
        raise UserError("there are no prompts to answer", field="prompts")
    stream = PromptStream(sources, encoder, config.seed, config.max_tokens)
    stream.token_ids(0)  # a template that refuses prompts is reported now
    if judge is None and config.reward_model:
        judge = RewardModelJudge(config.reward_model, config.judge_model)
    elif judge is None:
        judge = load_judge(config.judge or "", model=config.judge_model, adapter_rewards=adapter_rewards)
    elif not isinstance(judge, Judge):
        judge = judge_from_function(judge)
    progress.begin("Checking the judge")
    judge.check()
    return OnPolicyInputs(stream, judge, encoder)


def make_rollout_source(
    config: TrainConfig,
    loss: WeightedLoss,
    inputs: OnPolicyInputs,
    policy: Policy,
    memory_model: MemoryModel,
    train_set: ExampleSet,
    communicator: Communicator,
    listener: Listener,
) -> RolloutSource:
    """Make the batch source of an on-policy run.

    Args:
        config: the run's settings.
        loss: its loss.
        inputs: prompts and judge.
        policy: the policy.
        memory_model: says how many completions the reference scores at a time.
        train_set: the pairs to replay, with the reference; no pairs without replay.
        communicator: ranks that train together.
        listener: receives `RolloutsUsed`.
    """
    replayed = num_replayed(config)
    coef = DEFAULT_MIXTURE_COEF if config.nash_md_mixture_coef is None else config.nash_md_mixture_coef
    sampler = RolloutSampler(
        policy.model,
        inputs.encoder.tokenizer,
        train_set.reference.reference_policy,
        SamplingParams(config.max_tokens, config.temperature, config.top_p, config.seed),
        config.num_completions,
        loss.opponent,
        coef,
    )
    settings = RolloutSettings(
        prompts_per_batch=config.batch_size - replayed,
        batches_ahead=config.rollout_batches,
        opponent=loss.opponent,
        missing_eos_penalty=config.missing_eos_penalty or 0.0,
        keeps_reference_logps=not config.reference_sync_steps and config.ld_alpha in (None, 1),
    )
    return RolloutSource(
        inputs.prompts,
        sampler,
        inputs.judge,
        train_set.reference,
        memory_model,
        settings,
        inputs.digest,
        communicator,
        ShuffledDataset(train_set, replayed, config.seed) if replayed else None,
        rollout_reporter(inputs, listener),
    )


def rollout_reporter(inputs: OnPolicyInputs, listener: Listener) -> OnRollouts:
    """Make the function that passes a step's rollouts to a listener, as `RolloutsUsed`."""

    def report(step: int, rollouts: list[Rollout]) -> None:
        prompts = inputs.prompts.prompts
        lines = [rollout_record(step, prompts[rollout.prompt].prompt, rollout) for rollout in rollouts]
        listener.handle(RolloutsUsed(step, lines))

    return report
