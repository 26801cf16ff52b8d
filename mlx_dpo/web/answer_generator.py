"""The one model in memory, and the thread that answers with it: a request at a time, in their order."""

from __future__ import annotations

import gc
import queue
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import adapter_digest, load_adapter
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


@dataclass(frozen=True)
class ModelChange:
    """What is in memory from now on.

    Attributes:
        adapter_path: adapter folder to load onto the model.
        is_released: no model at all, until the next change.
    """

    adapter_path: Path | None = None
    is_released: bool = False


class AnswerGenerator:
    """Loads a model in a thread of its own, and answers requests there.

    Attributes:
        name: folder or Hub id of the model.
        adapter_path: adapter folder that is loaded onto it.
        rendering: `raw` and `template_kwargs` of `ChatRenderer`.
        error: why the model can't be loaded.
        is_ready: set while the model is loaded, or can't be.
        release_reason: why there is no model in memory, for display; None while one is there, or being loaded.
        adapter_digest: of the adapter that is loaded.
    """

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
        self.rendering: dict[str, Any] = {"raw": raw, "template_kwargs": template_kwargs or {}}
        self._requests: queue.SimpleQueue[AnswerRequest | ModelChange | None] = queue.SimpleQueue()
        self._base: Mapping[str, mx.array] = {}  # the adapter's tensors before it was loaded
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self.error: UserError | None = None
        self.is_ready = threading.Event()
        self.release_reason: str | None = None
        self.adapter_digest: str | None = None
        self._is_stopped, self._is_released = threading.Event(), threading.Event()

    def start(self) -> None:
        """Load the model, unless it is released, and answer what is submitted."""
        if self.release_reason is None:
            self._requests.put(ModelChange(self.adapter_path))
        self._thread.start()

    def release(self, reason: str) -> None:
        """Remove the model from memory, which something else needs; requests get the reason until `load`.

        Args:
            reason: for the page.
        """
        self.release_reason = reason
        self._is_released.set()
        self.is_ready.clear()
        self._requests.put(ModelChange(is_released=True))

    def load(self, adapter_path: Path | None) -> None:
        """Load the model again, with an adapter or without one; requests wait for it.

        Args:
            adapter_path: the adapter folder.
        """
        self.release_reason = None
        self._is_released.clear()
        self.is_ready.clear()
        self._requests.put(ModelChange(adapter_path))

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
        loaded: tuple[nn.Module, ChatRenderer] | None = None
        while (request := self._requests.get()) is not None:
            if isinstance(request, ModelChange):
                loaded = None
                loaded = self._change_model(request)
            elif self._is_stopped.is_set():
                request.on_update(StopRequested())
            elif loaded is None:
                request.on_update(self.error or self._release_error())
            elif not request.is_cancelled.is_set():
                self._answer(request, *loaded)

    def _change_model(self, change: ModelChange) -> tuple[nn.Module, ChatRenderer] | None:
        """Load what is to be in memory, once nothing else is; None if that is nothing, or can't be loaded."""
        self._base, self.error = {}, None
        self.is_ready.clear()
        gc.collect()  # modules refer to each other
        mx.clear_cache()
        if change.is_released or self._is_stopped.is_set():
            return None
        self.adapter_path, self.adapter_digest = change.adapter_path, None
        try:
            return self._load()
        except UserError as error:
            self.error = error.with_traceback(None)  # it would keep the model in memory
        except Exception as error:  # whatever mlx or a tokenizer raise on a damaged folder is for the page to show
            self.error = UserError(f"the model can't be loaded: {type(error).__name__}: {error}")
        finally:
            if self.release_reason is None:
                self.is_ready.set()
        return None

    def _release_error(self) -> UserError:
        return UserError(self.release_reason or "the model is being loaded", hint="Ask again later.")

    def _load(self) -> tuple[nn.Module, ChatRenderer]:
        renderer = ChatRenderer(load_tokenizer(self.name), **self.rendering)
        keep_weights_resident()
        model = load_model(self.name).model
        check_vocabulary(model, renderer.tokenizer)
        if self.adapter_path is not None:
            _, self._base = load_adapter(model, self.adapter_path)
            self.adapter_digest = adapter_digest(self.adapter_path)
        model.eval()
        count_logits(model)  # what mlx can't run here is a sentence
        batch_support(model)  # tried out now, and not while the first answer is awaited
        return model, renderer

    def _answer(self, request: AnswerRequest, model: nn.Module, renderer: ChatRenderer) -> None:
        try:
            with stop_on(request.is_cancelled), stop_on(self._is_stopped), stop_on(self._is_released):
                for partial in self._stream(request, model, renderer):
                    request.on_update(partial)
            request.on_update(None)
        except StopRequested as stop:
            request.on_update(self._release_error() if self._is_released.is_set() else stop)
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
