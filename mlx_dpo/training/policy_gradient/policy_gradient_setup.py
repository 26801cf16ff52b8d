"""Make the policy and the batch source of a PPO or RLOO run."""

from __future__ import annotations

from dataclasses import replace

from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import Policy
from mlx_dpo.forward.value_network import with_value_head
from mlx_dpo.objectives import LossFunction, WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.on_policy.on_policy_setup import OnPolicyInputs, rollout_reporter
from mlx_dpo.training.on_policy.planned_rollouts import PlannedRollouts
from mlx_dpo.training.on_policy.prompt_stream import PromptStream
from mlx_dpo.training.on_policy.rollout_sampler import RolloutSampler
from mlx_dpo.training.policy_gradient.policy_gradient_checks import DEFAULT_KL_HORIZON, completions_per_prompt
from mlx_dpo.training.policy_gradient.trajectory import Trajectory
from mlx_dpo.training.policy_gradient.trajectory_source import TrajectorySettings, TrajectorySource


def with_policy_gradient(policy: Policy, config: TrainConfig, function: LossFunction) -> Policy:
    """A policy whose log-probs are those of what is sampled, with a value head if the loss has one.

    Args:
        policy: a policy; its model is changed in place.
        config: the run's settings.
        function: the policy gradient.

    Raises:
        UserError: the model can't have a head.
    """
    policy = replace(policy, network=replace(policy.network, temperature=config.temperature))
    return with_value_head(policy, config.init_adapter) if function.needs_value_head else policy


def make_trajectory_source(
    config: TrainConfig,
    loss: WeightedLoss,
    inputs: OnPolicyInputs,
    policy: Policy,
    memory_model: MemoryModel,
    train_set: ExampleSet,
    communicator: Communicator,
    listener: Listener,
) -> TrajectorySource:
    """Make the batch source of a run; arguments are those of `make_rollout_source`.

    Raises:
        UserError: the judge gives no scores.
    """
    function = loss.policy_gradient
    assert function is not None
    if not inputs.judge.is_scalar:
        message = f"the loss {function.name!r} needs a score of each answer, and this judge compares two"
        hint = "Use --reward-model, or a function (prompt, answer) that returns a score."
        raise UserError(message, field="judge", hint=hint)
    reference = train_set.reference.reference_policy
    params = SamplingParams(config.max_tokens, config.temperature, 1.0, config.seed)
    sampler = RolloutSampler(
        policy.model, inputs.encoder.tokenizer, reference, params, completions_per_prompt(config, loss)
    )
    settings = TrajectorySettings(
        loss=function,
        advantage_settings={name: loss.settings[name] for name in function.advantage_defaults},
        prompts_per_batch=config.batch_size,
        num_mini_batches=config.num_mini_batches or 1,
        num_epochs=config.num_ppo_epochs or 1,
        kl_coef=loss.settings["kl_coef"],
        kl_target=config.kl_target,
        kl_horizon=config.kl_horizon or DEFAULT_KL_HORIZON,
        missing_eos_penalty=config.missing_eos_penalty or 0.0,
        seed=config.seed,
    )
    return TrajectorySource(
        inputs.prompts,
        sampler,
        inputs.judge,
        reference,
        memory_model,
        settings,
        inputs.digest,
        communicator,
        rollout_reporter(inputs, listener),
    )


def planned_source(
    config: TrainConfig, loss: WeightedLoss, prompts: PromptStream, reference: ReferenceLogps
) -> PlannedRollouts:
    """Make the source that stands for what any on-policy run would sample.

    Args:
        config: the run's settings.
        loss: its loss.
        prompts: its prompts.
        reference: table of the reference's log-probs.
    """
    planned, size = None, config.batch_size
    if loss.policy_gradient:  # each completion is an example
        planned, size = Trajectory.planned(config.max_tokens), size * completions_per_prompt(config, loss)
    return PlannedRollouts(prompts, reference, size, config.max_tokens, planned)
