"""What a person asks the model for. A page without a model has this module, and not those of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_dpo.data.messages import Message
from mlx_dpo.errors import UserError
from mlx_dpo.sampling.completions import PartialCompletion, SamplingParams
from mlx_dpo.utils.stop_flag import StopRequested

MAX_ANSWERS = 4
AnswerUpdate = list[PartialCompletion] | UserError | StopRequested | None


@dataclass
class AnswerRequest:
    """A conversation to answer.

    Attributes:
        messages: its turns, the user's last.
        params: how answers are sampled.
        num_answers: how many.
        compare: whether half of the answers, at random places, are of the model without the adapter.
        on_update: receives, in the generator's thread, the answers that have changed; None once at the end, or what
            ended it: an error, or `StopRequested` if it was cancelled or the generator stopped. It must not raise.
        is_cancelled: set it to end the request.
        policies: [answers] of which policy each answer is, "base" or "tuned", once it has begun.
    """

    messages: Sequence[Message]
    params: SamplingParams
    num_answers: int
    compare: bool
    on_update: Callable[[AnswerUpdate], object]
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    policies: list[str] = field(default_factory=list)
