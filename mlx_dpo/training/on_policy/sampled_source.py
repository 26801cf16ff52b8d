"""What batch sources have in common whose examples are sampled from the current policy and judged while training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.judges.judge import Judge
from mlx_dpo.training.batch_source import BatchSource
from mlx_dpo.training.on_policy.prompt_stream import PromptStream
from mlx_dpo.training.on_policy.rollout import Rollout
from mlx_dpo.training.on_policy.rollout_sampler import RolloutSampler

OnRollouts = Callable[[int, list[Rollout]], None]


class SampledSource(BatchSource):
    """Samples prompts' completions from the policy, and has them judged.

    With several ranks, each samples and judges its share of the prompts.
    """

    def __init__(
        self,
        prompts: PromptStream,
        sampler: RolloutSampler,
        judge: Judge,
        digest: str,
        communicator: Communicator,
        on_rollouts: OnRollouts,
    ) -> None:
        """Make a source.

        Args:
            prompts: the prompts.
            sampler: samples their completions from the policy.
            judge: gives scores or verdicts.
            digest: identifies prompts and judge.
            communicator: ranks that share the work.
            on_rollouts: receives the step, counted from 1, and its rollouts once the step is done.
        """
        self.prompts, self.sampler, self.judge = prompts, sampler, judge
        self.digest, self.communicator, self.on_rollouts = digest, communicator, on_rollouts
        self._judge_session: AbstractContextManager[object] | None = None

    @abstractmethod
    def _with_logps(self, rollouts: list[Rollout]) -> list[Rollout]:
        """The rollouts with what the models give for their completions, such as the reference's log-probs."""

    @abstractmethod
    def _with_verdicts(self, rollouts: list[Rollout], prompts: Sequence[TextOrMessages]) -> list[Rollout]:
        """The rollouts with what the judge makes of them."""

    def _roll_out(self, first_position: int, count: int) -> list[Rollout]:
        """Rollouts of the prompts at some positions of the stream, in their order, on all ranks."""
        local = self.communicator.local_items(list(range(first_position, first_position + count)))
        indices = [self.prompts.index(position) for position in local]
        sampled = self.sampler.sample(local, [self.prompts.token_ids(index) for index in indices])
        rollouts = [
            Rollout(position, index, completions)
            for position, index, completions in zip(local, indices, sampled, strict=True)
        ]
        rollouts = self._with_logps(rollouts)
        judges_here = self.communicator.data_parallel or self.communicator.is_main  # a judge may not be deterministic
        if judges_here and rollouts:
            self._begin_judge_session()
            rollouts = self._with_verdicts(rollouts, [self.prompts.prompts[index].prompt for index in indices])
        gathered = self.communicator.all_gather_json([r.to_mapping() for r in rollouts] if judges_here else [])
        shared = [Rollout.from_mapping(item) for part in gathered for item in part]
        return sorted(shared, key=lambda rollout: rollout.position)

    def _begin_judge_session(self) -> None:
        """Let a judge that is a model stay in memory, instead of loading it in every step."""
        if self._judge_session is None:
            self._judge_session = self.judge.session()
            self._judge_session.__enter__()  # it ends with this object
