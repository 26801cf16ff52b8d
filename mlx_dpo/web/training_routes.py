"""What the training view asks for: the settings, and a run that is started, watched, stopped and resumed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_dpo.errors import UserError
from mlx_dpo.reporting.html_report import SCRIPTS, report_asset
from mlx_dpo.web.answer_generator import AnswerGenerator
from mlx_dpo.web.background_run import BackgroundRun
from mlx_dpo.web.json_requests import json_response, read_json
from mlx_dpo.web.training_form import TrainingForm
from mlx_dpo.web.training_state import describe_run, run_report, run_state
from mlx_dpo.web.verdicts import VerdictFiles

POLL_SECONDS = 0.5
RELEASE_REASON = "there are no answers while training has the memory"


class TrainingRoutes:
    """The run that a page starts on its files. While it is in progress, the generator has no model in memory."""

    def __init__(self, verdicts: VerdictFiles, generator: AnswerGenerator) -> None:
        """Join the parts; a run that an earlier server has started is followed.

        Args:
            verdicts: the rows to train on; the run's folder is beside them.
            generator: has the model in memory.
        """
        output, rendering = verdicts.preferences.path, generator.rendering
        settings = {"raw": rendering["raw"], "chat_template_kwargs": dict(rendering["template_kwargs"]) or None}
        self.generator, self.form = generator, TrainingForm(verdicts, generator.name, settings)
        self.background = BackgroundRun(output.with_name(f"{output.stem}.train.log"))
        self._lock, self._follow_lock = threading.Lock(), threading.Lock()
        self._is_followed = self._is_stopping = False
        self._follow()

    def routes(self) -> list[Route]:
        """The routes, below /api/training, and the scripts of the report's charts."""
        return [
            Route("/api/training", self.state),
            Route("/api/training/form", self.show_form),
            Route("/api/training/report", self.report),
            Route("/api/training/outline", self.outline, methods=["POST"]),
            Route("/api/training/start", self.start, methods=["POST"]),
            Route("/api/training/stop", self.stop, methods=["POST"]),
            Route("/api/training/resume", self.resume, methods=["POST"]),
            Route("/api/training/adapter", self.load_adapter, methods=["POST"]),
            Route("/report-assets/{name:path}", self.script),
        ]

    async def show_form(self, request: Request) -> Response:
        """The settings, with defaults and help texts."""
        return json_response(await run_in_threadpool(self.form.describe))

    async def outline(self, request: Request) -> Response:
        """What a run with these settings would do, or what is wrong with them: no failure while they are typed."""
        settings = (await read_json(request)).get("settings")
        try:
            outline = await run_in_threadpool(lambda: self.form.outline(self.form.config(settings)))
        except UserError as error:
            return json_response({"problem": {"message": str(error), "field": error.field}})
        return json_response(asdict(outline))

    async def state(self, request: Request) -> Response:
        """The last run, None if there was none; and whether the model answers, and with which adapter."""
        return json_response(await run_in_threadpool(self._state))

    def _state(self) -> dict[str, Any]:
        self._follow()
        log, generator = self.background.read(), self.generator
        return {
            "run": describe_run(self.background),
            "is_stopping": self._is_stopping,
            "is_ready": generator.is_ready.is_set(),
            "error": generator.error and str(generator.error),
            "adapter": generator.adapter_digest,
            "has_run_adapter": bool(log and generator.adapter_path == log.folder),
        }

    async def report(self, request: Request) -> Response:
        """What the run's report has to show so far."""
        return json_response(await run_in_threadpool(lambda: run_report(self._folder())))

    async def start(self, request: Request) -> Response:
        """Start a run."""
        settings = (await read_json(request)).get("settings")
        await run_in_threadpool(self._start, settings)
        return JSONResponse({"started": True})

    def _start(self, settings: Any) -> None:
        with self._lock:
            config = self.form.config(settings)
            self._require_idle()
            self._run(Path(config.adapter_path), self.form.prepare(config))

    async def resume(self, request: Request) -> Response:
        """Resume the last run."""
        await run_in_threadpool(self._resume)
        return JSONResponse({"started": True})

    def _resume(self) -> None:
        with self._lock:
            folder = self._folder()
            self._require_idle()
            if run_state(folder) != "stopped":
                raise UserError("there is no run to resume")
            self._run(folder, ["train", "--resume", "--adapter-path", str(folder)])

    def _require_idle(self) -> None:
        if self.background.is_running():
            raise UserError("a run is in progress", hint="Wait until it has ended, or stop it.")

    def _run(self, folder: Path, arguments: Sequence[str]) -> None:
        self.generator.release(RELEASE_REASON)
        try:
            self.background.start(folder, arguments)
        except UserError:
            self.generator.load(self.generator.adapter_path)
            raise
        self._follow()

    def _follow(self) -> None:
        """Keep the model out of memory until the run, if one is in progress, has ended."""
        with self._follow_lock:
            if self._is_followed or not self.background.is_running():
                return
            self._is_followed, self._is_stopping = True, False
            self.generator.release(RELEASE_REASON)
            threading.Thread(target=self._wait_for_end, name="training", daemon=True).start()

    def _wait_for_end(self) -> None:
        while not self._has_ended():
            time.sleep(POLL_SECONDS)

    def _has_ended(self) -> bool:
        """Whether the run has ended; then the model is loaded again, with the adapter of a finished run."""
        with self._follow_lock:
            if self.background.is_running():
                return False
            log = self.background.read()
            is_finished = log is not None and run_state(log.folder) == "finished"
            self._is_followed = self._is_stopping = False
            self.generator.load(log.folder if log and is_finished else self.generator.adapter_path)
            return True

    async def stop(self, request: Request) -> Response:
        """Let the run finish its step, save, and end."""
        if not self._is_stopping:  # a second signal would end it at once
            self._is_stopping = await run_in_threadpool(self.background.interrupt)
        return JSONResponse({"is_stopping": self._is_stopping})

    async def load_adapter(self, request: Request) -> Response:
        """Load the adapter of the last run, if it is finished, for answers and comparisons."""
        await run_in_threadpool(self._load_adapter)
        return JSONResponse({"loading": True})

    def _load_adapter(self) -> None:
        with self._lock:
            folder = self._folder()
            self._require_idle()
            if run_state(folder) != "finished":
                raise UserError("there is no finished run")
            if self.generator.adapter_path != folder:
                self.generator.load(folder)

    async def script(self, request: Request) -> Response:
        """A script of the report's charts."""
        name = request.path_params["name"]
        if name not in SCRIPTS:
            return JSONResponse({"message": "there is no such file"}, 404)
        return Response(report_asset(name), media_type="text/javascript")

    def _folder(self) -> Path:
        log = self.background.read()
        if log is None:
            raise UserError("nothing was trained here yet")
        return log.folder
