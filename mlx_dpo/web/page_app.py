"""The application behind the page: its files, and what the page asks for."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from mlx_dpo.data.messages import Message
from mlx_dpo.errors import UserError
from mlx_dpo.sampling.completions import PartialCompletion, SamplingParams
from mlx_dpo.web.answer_request import MAX_ANSWERS, AnswerRequest, AnswerUpdate
from mlx_dpo.web.blind_comparisons import BlindComparisons
from mlx_dpo.web.comparison_routes import ComparisonRoutes
from mlx_dpo.web.json_requests import read_json
from mlx_dpo.web.markdown_html import markdown_to_html
from mlx_dpo.web.review_routes import ReviewRoutes
from mlx_dpo.web.row_routes import RowRoutes
from mlx_dpo.web.row_tally import next_prompt
from mlx_dpo.web.verdicts import HumanVerdict, VerdictFiles, are_messages, is_integer

if TYPE_CHECKING:  # it imports mlx-lm, which takes seconds
    from mlx_dpo.web.answer_generator import AnswerGenerator

ASSETS = files("mlx_dpo.web") / "assets"
ASSET_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
UPDATE_SECONDS = 0.05  # between two pictures of the answers; a person reads no faster
RENDERING_SHARE = 0.1  # of the time, at most: long answers are shown less often, so that sampling isn't slowed down
MAX_TOKENS = 8192  # longest answer that the page may ask for, unless the command's own setting is longer
MAX_TEMPERATURE = 5


class CollectPage:
    """The page's requests, answered for one model and one file of preferences."""

    def __init__(
        self,
        generator: AnswerGenerator | None,
        verdicts: VerdictFiles,
        prompts: Sequence[Sequence[Message]] = (),
        params: SamplingParams | None = None,
        num_answers: int = 2,
        review: ReviewRoutes | None = None,
    ) -> None:
        """Join the parts.

        Args:
            generator: answers; None where a file is reviewed.
            verdicts: receive what the person thinks of the answers.
            prompts: conversations to go through.
            params: how answers are sampled unless the page asks for something else.
            num_answers: answers to a prompt, likewise.
            review: the file that is reviewed, instead of asking a model.
        """
        self.review = review
        self.generator, self.verdicts, self.prompts = generator, verdicts, prompts
        self.params, self.num_answers = params or SamplingParams(temperature=0.9), num_answers
        self.max_tokens_limit = max(MAX_TOKENS, self.params.max_tokens)
        self.comparisons = BlindComparisons(verdicts.preferences.path)

    def application(self) -> Starlette:
        """The routes, without control of access."""
        return Starlette(
            routes=[
                Route("/", self.show_page),
                Route("/assets/{name}", self.show_asset),
                Route("/api/state", self.state),
                Route("/api/prompts/{index:int}", self.prompt),
                Route("/api/answers", self.answers, methods=["POST"]),
                Route("/api/verdicts", self.add_verdict, methods=["POST"]),
                Route("/api/verdicts/remove", self.remove_verdict, methods=["POST"]),
                *RowRoutes(self.verdicts).routes(),
                *(self.review.routes() if self.review else ()),
                *self._model_routes(),
            ],
            exception_handlers={UserError: _error_response},
        )

    def _model_routes(self) -> list[BaseRoute]:
        if self.generator is None:
            return []
        from mlx_dpo.web.training_routes import TrainingRoutes  # it imports mlx, which takes seconds

        comparisons = ComparisonRoutes(self.comparisons, self.generator, self.verdicts, self.prompts)
        return [*TrainingRoutes(self.verdicts, self.generator).routes(), *comparisons.routes()]

    async def show_page(self, request: Request) -> Response:
        """The page itself."""
        return _asset("collect.html")

    async def show_asset(self, request: Request) -> Response:
        """Its style, its scripts and its icon."""
        name = request.path_params["name"]
        is_there = name in {asset.name for asset in ASSETS.iterdir()}
        return _asset(name) if is_there else JSONResponse({"message": "there is no such file"}, 404)

    async def state(self, request: Request) -> Response:
        """The model and whether it is loaded, the file, and what was collected so far."""
        generator = self.generator
        return JSONResponse(
            {
                "model": generator and generator.name,
                "adapter": generator and generator.adapter_path and str(generator.adapter_path),
                "is_ready": generator is None or generator.is_ready.is_set(),
                "release_reason": generator and generator.release_reason,
                "error": generator and generator.error and _error_json(generator.error),
                "review": self.review and await run_in_threadpool(self.review.progress.summary),
                "output": str(self.verdicts.preferences.path),
                "labels_output": str(self.verdicts.labels.path),
                "counts": await run_in_threadpool(self.verdicts.counts),
                "num_prompts": len(self.prompts),
                "num_answers": self.num_answers,
                "max_answers": MAX_ANSWERS,
                "temperature": self.params.temperature,
                "max_tokens": self.params.max_tokens,
                "max_tokens_limit": self.max_tokens_limit,
                "wins": await run_in_threadpool(self._wins),
            }
        )

    async def prompt(self, request: Request) -> Response:
        """The first prompt of the file from a number on that has no verdict; `index` is None if all have one."""
        index = await run_in_threadpool(self._next_prompt, request.path_params["index"])
        return JSONResponse({"index": index, "messages": [] if index is None else list(self.prompts[index])})

    async def answers(self, request: Request) -> Response:
        """Answers to a conversation, as server-sent events; the request is cancelled when the page closes it."""
        body = await read_json(request)
        messages: Any = body.get("messages")
        n, compare = body.get("num_answers", self.num_answers), body.get("compare")
        if not are_messages(messages):
            raise UserError("there is no prompt to answer", field="messages")
        if not is_integer(n) or not 1 <= n <= MAX_ANSWERS:
            raise UserError(f"must be from 1 to {MAX_ANSWERS}", field="num_answers")
        if self.generator is None:
            raise UserError("no model is loaded: this page reviews a file")
        if compare and (self.generator.adapter_path is None or n < 2):
            raise UserError("needs an adapter and two answers or more", field="compare")
        if compare and n % 2:
            raise UserError("needs an even number of answers: half of them are of each policy", field="compare")
        params = _sampling_params(self.params, body, self.max_tokens_limit)
        return StreamingResponse(
            self._stream(self.generator, messages, params, n, bool(compare)), media_type="text/event-stream"
        )

    async def _stream(
        self, generator: AnswerGenerator, messages: list[Message], params: SamplingParams, n: int, compare: bool
    ) -> AsyncIterator[str]:
        loop, updates = asyncio.get_running_loop(), asyncio.Queue[AnswerUpdate]()

        def on_update(update: AnswerUpdate) -> None:
            with suppress(RuntimeError):  # the server has just ended, and its loop is closed
                loop.call_soon_threadsafe(updates.put_nowait, update)

        answers = AnswerRequest(messages, params, n, compare, on_update)
        generator.submit(answers)
        latest: dict[int, PartialCompletion] = {}
        next_at = 0.0
        try:
            html = [markdown_to_html(turn["content"]) for turn in messages]
            yield _event("begin", {"num_answers": n, "html": html})
            while isinstance(update := await updates.get(), list):
                latest |= {answer.index: answer for answer in update}
                has_ended = any(answer.finish_reason for answer in update)
                if latest and (has_ended or time.monotonic() >= next_at):
                    began = time.monotonic()
                    event = _event("answers", {"answers": [_answer_json(answer) for answer in latest.values()]})
                    latest = {}
                    yield event
                    now = time.monotonic()
                    next_at = now + max(UPDATE_SECONDS, (now - began) * (1 / RENDERING_SHARE - 1))
            if isinstance(update, UserError):
                yield _event("failed", _error_json(update))
            elif update is None:
                comparison = self.comparisons.remember(answers.policies, generator) if compare else None
                yield _event("end", {"comparison": comparison})
        finally:
            answers.is_cancelled.set()

    async def add_verdict(self, request: Request) -> Response:
        """Write a verdict; the response says so once it is on the disk, and which policy each answer was of."""
        body = await read_json(request)
        row_ids, policies = await run_in_threadpool(self._add, body.get("verdict"), str(body.get("comparison")))
        counts, wins = await run_in_threadpool(self.verdicts.counts), await run_in_threadpool(self._wins)
        return JSONResponse({"ids": row_ids, "counts": counts, "policies": policies, "wins": wins})

    def _add(self, value: Any, comparison: str) -> tuple[list[str], list[str] | None]:
        verdict = HumanVerdict.from_json(value)
        row_ids = self.verdicts.add(verdict)
        policies = self.comparisons.policies(comparison)
        winner = policies and _winner(verdict, policies)
        if not winner:
            return row_ids, None
        try:
            self.comparisons.add(comparison, value["messages"], value["answers"], winner)
        except UserError:
            self.verdicts.remove(row_ids)
            raise
        return [*row_ids, comparison], policies

    def _wins(self) -> dict[str, Any]:
        return self.comparisons.summary(self.generator.adapter_digest if self.generator else None)

    async def remove_verdict(self, request: Request) -> Response:
        """Undo a verdict: remove its rows."""
        row_ids = (await read_json(request)).get("ids")
        if not isinstance(row_ids, list) or not all(isinstance(row_id, str) for row_id in row_ids):
            raise UserError("must be the ids of rows", field="ids")
        removed = await run_in_threadpool(self.verdicts.remove, row_ids)
        await run_in_threadpool(self.comparisons.remove, row_ids)
        counts, wins = await run_in_threadpool(self.verdicts.counts), await run_in_threadpool(self._wins)
        return JSONResponse({"removed": removed, "counts": counts, "wins": wins})

    def _next_prompt(self, start: int) -> int | None:
        return next_prompt(self.prompts, start, self.verdicts.judged_prompts())


def _winner(verdict: HumanVerdict, policies: Sequence[str]) -> str | None:
    """Whose answers a verdict prefers, "base" or "tuned", or "tie"; None for a verdict that compares none."""
    if verdict.kind == "choice" and verdict.index is not None and verdict.index < len(policies):
        return policies[verdict.index]
    return "tie" if verdict.kind in ("tie", "both_bad") else None


def _sampling_params(defaults: SamplingParams, body: Mapping[str, Any], limit: int) -> SamplingParams:
    max_tokens = body.get("max_tokens", defaults.max_tokens)
    temperature = body.get("temperature", defaults.temperature)
    if not is_integer(max_tokens) or not 1 <= max_tokens <= limit:
        raise UserError(f"must be a whole number from 1 to {limit}", field="max_tokens")
    is_number = is_integer(temperature) or isinstance(temperature, float)
    if not is_number or not 0 <= temperature <= MAX_TEMPERATURE:
        raise UserError(f"must be a number from 0 to {MAX_TEMPERATURE}", field="temperature")
    return replace(defaults, max_tokens=max_tokens, temperature=float(temperature), seed=secrets.randbits(31))


def _answer_json(answer: PartialCompletion) -> dict[str, Any]:
    text = answer.text.strip()
    return {
        "index": answer.index,
        "text": text,
        "html": markdown_to_html(text),
        "finish_reason": answer.finish_reason,
        "num_tokens": answer.num_tokens,
    }


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _error_json(error: UserError) -> dict[str, Any]:
    return {"message": str(error)}


async def _error_response(request: Request, error: Exception) -> Response:
    field = error.field if isinstance(error, UserError) else None
    return JSONResponse({"message": str(error), "field": field}, status_code=400)


def _asset(name: str) -> Response:
    return Response((ASSETS / name).read_bytes(), media_type=ASSET_TYPES[PurePath(name).suffix])
