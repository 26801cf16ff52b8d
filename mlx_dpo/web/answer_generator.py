"""The one model in memory, and the thread that answers with it: a request at a time, in their order."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Prompt
from mlx_dpo.data.messages import Message
from mlx_dpo.errors import UserError
from mlx_dpo.forward.device import keep_weights_resident
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.path_agreement import count_logits
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.sampling.batch_support import batch_support
from mlx_dpo.sampling.completions import PartialCompletion
from mlx_dpo.sampling.streaming import stream_completions
from mlx_dpo.utils.stop_flag import StopRequested, stop_on
from mlx_dpo.web.answer_request import AnswerRequest

STOP_SECONDS = 5


class AnswerGenerator:
    """Loads a model in a thread of its own, and answers requests there."""

    def __init__(
        self,
        model: str,
        adapter_path: Path | None = None,
        *,
        raw: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Name the model; `start` loads it.

        Args:
            model: folder or Hub id.
            adapter_path: adapter folder to load onto it.
            raw: take texts as they are, though there is a chat template.
            template_kwargs: variables for the chat template.
        """
        self.name, self.adapter_path = model, adapter_path
        self._rendering: dict[str, Any] = {"raw": raw, "template_kwargs": template_kwargs or {}}
        self._requests: queue.SimpleQueue[AnswerRequest | None] = queue.SimpleQueue()
        self._base: Mapping[str, mx.array] = {}  # the adapter's tensors before it was loaded
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self.error: UserError | None = None
        self.is_ready = threading.Event()
        self._is_stopped = threading.Event()

    def start(self) -> None:
        """Load the model and answer what is submitted."""
        self._thread.start()

    def submit(self, request: AnswerRequest) -> None:
        """Add a request to the queue."""
        self._requests.put(request)

    def request_stop(self) -> None:
        """End the request that is being answered and all that wait, and then the thread."""
        self._is_stopped.set()
        self._requests.put(None)

    def stop(self) -> None:
        """`request_stop`, and wait for the thread; only shortly for a model that is being loaded."""
        self.request_stop()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            model, renderer = self._load()
        except UserError as error:
            self.error = error
        except Exception as error:  # whatever mlx or a tokenizer raise on a damaged folder is for the page to show
            self.error = UserError(f"the model can't be loaded: {type(error).__name__}: {error}")
        self.is_ready.set()
        while (request := self._requests.get()) is not None:
            if self._is_stopped.is_set():
                request.on_update(StopRequested())
            elif self.error is not None:
                request.on_update(self.error)
            elif not request.is_cancelled.is_set():
                self._answer(request, model, renderer)

    def _load(self) -> tuple[nn.Module, ChatRenderer]:
        renderer = ChatRenderer(load_tokenizer(self.name), **self._rendering)
        keep_weights_resident()
        model = load_model(self.name).model
        check_vocabulary(model, renderer.tokenizer)
        if self.adapter_path is not None:
            _, self._base = load_adapter(model, self.adapter_path)
        model.eval()
        count_logits(model)  # what mlx can't run here is a sentence
        batch_support(model)  # tried out now, and not while the first answer is awaited
        return model, renderer

    def _answer(self, request: AnswerRequest, model: nn.Module, renderer: ChatRenderer) -> None:
        try:
            with stop_on(request.is_cancelled), stop_on(self._is_stopped):
                for partial in self._stream(request, model, renderer):
                    request.on_update(partial)
            request.on_update(None)
        except StopRequested as stop:
            request.on_update(stop)
        except UserError as error:
            request.on_update(error)
        except Exception as error:  # of the backend, such as out of memory, or of a chat template: the page shows it
            message = f"the model can't answer: {type(error).__name__}: {error}"
            request.on_update(UserError(message, hint="Fewer or shorter answers take less memory."))

    def _stream(
        self, request: AnswerRequest, model: nn.Module, renderer: ChatRenderer
    ) -> Iterator[list[PartialCompletion]]:
        prompt = renderer.prompt_ids(Prompt(_as_prompt(request.messages)))
        request.policies[:] = _draw_policies(request)
        streams: list[tuple[str, list[int], Iterator[list[PartialCompletion]]]] = []
        for policy in dict.fromkeys(request.policies):
            places = [i for i, name in enumerate(request.policies) if name == policy]
            params = replace(request.params, seed=request.params.seed + len(streams))
            completions = stream_completions(model, renderer.tokenizer, prompt, params, n=len(places))
            streams.append((policy, places, completions))
        while streams:
            for stream in list(streams):
                policy, places, completions = stream
                with self._as_policy(model, policy):
                    partial = next(completions, None)
                if partial is None:
                    streams.remove(stream)
                else:
                    yield [replace(answer, index=places[answer.index]) for answer in partial]

    @contextmanager
    def _as_policy(self, model: nn.Module, policy: str) -> Iterator[None]:
        if policy == "tuned":
            yield
            return
        with swap_adapter(model, self._base):
            yield


def _draw_policies(request: AnswerRequest) -> list[str]:
    if not request.compare:
        return ["tuned"] * request.num_answers
    half = request.num_answers // 2
    policies = ["base"] * half + ["tuned"] * (request.num_answers - half)
    random.SystemRandom().shuffle(policies)
    return policies


def _as_prompt(messages: Sequence[Message]) -> Any:
    """A single user turn as a text, as it is written to the file, so that it is rendered as in training."""
    return messages[0]["content"] if len(messages) == 1 else list(messages)
