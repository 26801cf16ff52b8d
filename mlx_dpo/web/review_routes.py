"""What the page asks for where it reviews a file: the next comparison, and verdicts on it."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_dpo.errors import UserError
from mlx_dpo.web.conversation_html import completion_html, prompt_turns
from mlx_dpo.web.json_requests import json_response, read_json
from mlx_dpo.web.review_progress import ReviewProgress, ShownComparison


class ReviewRoutes:
    """The requests of one person who judges a file. Nothing that the file says of a completion is in a response."""

    def __init__(self, progress: ReviewProgress) -> None:
        """Join the parts.

        Args:
            progress: the file, and the person's verdicts on it.
        """
        self.progress = progress

    def routes(self) -> list[Route]:
        """The routes, all below /api/review."""
        return [
            Route("/api/review", self.summary),
            Route("/api/review/labeller", self.set_labeller, methods=["POST"]),
            Route("/api/review/next", self.next_comparison),
            Route("/api/review/verdicts", self.add_verdict, methods=["POST"]),
            Route("/api/review/skipped", self.skip, methods=["POST"]),
        ]

    async def summary(self, request: Request) -> Response:
        """How many comparisons there are, and how many are judged."""
        return json_response(await run_in_threadpool(self.progress.summary))

    async def set_labeller(self, request: Request) -> Response:
        """Set the person's name, where it is unknown."""
        name = (await read_json(request)).get("name")
        if not isinstance(name, str) or not name.strip():
            raise UserError("must be a name", field="labeller")
        if self.progress.verdicts.labeller not in (None, name.strip()):
            raise UserError(f"is {self.progress.verdicts.labeller} already", field="labeller")
        self.progress.verdicts.labeller = name.strip()
        return await self.summary(request)

    async def next_comparison(self, request: Request) -> Response:
        """The comparison to judge next, or, where `comparison` is None, what the verdicts amount to."""
        return json_response(await run_in_threadpool(self._next))

    def _next(self) -> dict[str, Any]:
        shown = self.progress.next()
        response = {"summary": self.progress.summary(), "comparison": shown and self._comparison_json(shown)}
        return response if shown else {**response, "result": self.progress.result()}

    def _comparison_json(self, shown: ShownComparison) -> dict[str, Any]:
        comparison = self.progress.comparison(shown)
        turns = prompt_turns(comparison.prompt, comparison.columns.get("tools"))
        completions = comparison.shown_to(self.progress.labeller, shown.count)
        return {
            "shown": self.progress.to_json(shown),
            "turns": [{"role": role, "html": html} for role, html in turns],
            "answers": [{"html": completion_html(completion)} for completion in completions],
        }

    async def add_verdict(self, request: Request) -> Response:
        """Write a verdict; the response says so once it is on the disk."""
        body = await read_json(request)
        row_ids = await run_in_threadpool(self.progress.add, self.progress.from_json(body.get("shown")), body)
        return JSONResponse({"ids": row_ids, "counts": await run_in_threadpool(self.progress.verdicts.counts)})

    async def skip(self, request: Request) -> Response:
        """Skip a comparison until the server is ended, or, without `shown`, skip none any more."""
        body = await read_json(request)
        if "shown" in body:
            self.progress.skipped.add(self.progress.from_json(body["shown"]))
        else:
            self.progress.skipped.clear()
        return await self.summary(request)
