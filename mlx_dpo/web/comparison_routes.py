"""What the blind comparison of base and adapter asks for: prompts, verdicts, and the win rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_dpo.data.messages import Message
from mlx_dpo.errors import UserError
from mlx_dpo.web.blind_comparisons import BlindComparisons
from mlx_dpo.web.json_requests import json_response, read_json
from mlx_dpo.web.row_tally import next_prompt
from mlx_dpo.web.verdicts import VerdictFiles, are_messages, is_integer

if TYPE_CHECKING:  # it imports mlx-lm, which takes seconds
    from mlx_dpo.web.answer_generator import AnswerGenerator


class ComparisonRoutes:
    """Verdicts on two answers, one of each policy. The answers themselves are those of /api/answers with `compare`."""

    def __init__(
        self,
        comparisons: BlindComparisons,
        generator: AnswerGenerator,
        verdicts: VerdictFiles,
        prompts: Sequence[Sequence[Message]],
    ) -> None:
        """Join the parts.

        Args:
            comparisons: receive the verdicts.
            generator: has the adapter.
            verdicts: whose prompts may have been trained on.
            prompts: conversations to go through.
        """
        self.comparisons, self.generator, self.verdicts, self.prompts = comparisons, generator, verdicts, prompts

    def routes(self) -> list[Route]:
        """The routes, below /api/comparisons."""
        return [
            Route("/api/comparisons", self.show),
            Route("/api/comparisons", self.add, methods=["POST"]),
            Route("/api/comparisons/remove", self.remove, methods=["POST"]),
            Route("/api/comparisons/revealed", self.reveal),
            Route("/api/comparisons/prompts/{index:int}", self.prompt),
        ]

    async def show(self, request: Request) -> Response:
        """Wins and win rate of the adapter that is loaded, and the file of verdicts."""
        return json_response(await run_in_threadpool(self._summary))

    async def reveal(self, request: Request) -> Response:
        """The verdicts on that adapter, with the policy of each answer."""
        rows = await run_in_threadpool(self.comparisons.rows, self.generator.adapter_digest)
        names = ("prompt", "answers", "policies", "winner")
        return json_response({"rows": [{name: row.get(name) for name in names} for row in rows]})

    async def prompt(self, request: Request) -> Response:
        """The first fresh prompt of the file from a number on; `index` is None if there is none.

        Fresh is what has neither a preference, which may have been trained on, nor a comparison.
        """
        index = await run_in_threadpool(self._next_prompt, request.path_params["index"])
        return json_response({"index": index, "messages": [] if index is None else list(self.prompts[index])})

    async def add(self, request: Request) -> Response:
        """Write a verdict; the response says so once it is on the disk."""
        body = await read_json(request)
        messages: Any = body.get("messages")
        answers: Any = body.get("answers")
        choice = body.get("choice")
        if not are_messages(messages):
            raise UserError("must be turns with a role and a content, the user's last", field="messages")
        if not isinstance(answers, list) or len(answers) != 2 or not all(isinstance(text, str) for text in answers):
            raise UserError("must be two texts", field="answers")
        if choice is not None and not (is_integer(choice) and choice in (0, 1)):
            raise UserError("must be 0, 1, or null for a tie", field="choice")
        comparison = str(body.get("comparison"))
        policies = self.comparisons.policies(comparison)
        winner = "tie" if choice is None or policies is None else policies[choice]
        await run_in_threadpool(self.comparisons.add, comparison, messages, answers, winner)
        return json_response({"id": comparison, **await run_in_threadpool(self._summary)})

    async def remove(self, request: Request) -> Response:
        """Undo a verdict."""
        row_id = (await read_json(request)).get("id")
        if not isinstance(row_id, str):
            raise UserError("must be the id of a comparison", field="id")
        removed = await run_in_threadpool(self.comparisons.remove, [row_id])
        return JSONResponse({"removed": removed, **await run_in_threadpool(self._summary)})

    def _summary(self) -> dict[str, Any]:
        summary = self.comparisons.summary(self.generator.adapter_digest)
        return {**summary, "file": str(self.comparisons.file.path), "num_prompts": len(self.prompts)}

    def _next_prompt(self, start: int) -> int | None:
        known = self.verdicts.judged_prompts() | self.comparisons.prompts(self.generator.adapter_digest)
        return next_prompt(self.prompts, start, known)
