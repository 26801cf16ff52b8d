"""Serves the page to this machine's browser until it is stopped."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from mlx_dpo.errors import UserError
from mlx_dpo.utils.atomic_write import atomic_write
from mlx_dpo.utils.cache_folder import cache_folder
from mlx_dpo.web.access_control import AccessControl
from mlx_dpo.web.page_app import CollectPage

if TYPE_CHECKING:
    from mlx_dpo.web.answer_generator import AnswerGenerator

ADDRESS = "127.0.0.1"
SHUTDOWN_SECONDS = 1  # that open streams of answers may take to end


def serve(
    page: CollectPage, *, port: int = 0, open_browser: bool = True, on_ready: Callable[[str], None] = print
) -> None:
    """Serve a page on 127.0.0.1 until SIGINT or SIGTERM.

    A page that is open when the server is ended goes on after the same command was started again: port and token are
    kept in a file of the cache that only its owner can read.

    Args:
        page: the page.
        port: the port; 0 for that of the last time if it is free, else any.
        open_browser: whether to open the page in the browser.
        on_ready: receives the address, with the token.

    Raises:
        UserError: the port is taken.
    """
    session = _session_file(page.verdicts.preferences.path)
    last_port, token = _read_session(session)
    listener = _listen(port, last_port)
    port = listener.getsockname()[1]
    _write_session(session, port, token)
    app = AccessControl(page.application(), token=token, port=port)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    url = f"http://{ADDRESS}:{port}/?token={token}"
    on_ready(url)
    if page.generator is not None:
        page.generator.start()
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    try:
        with listener:
            _PageServer(config, page.generator).run([listener])
    finally:
        if page.generator is not None:
            page.generator.stop()


class _PageServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, generator: AnswerGenerator | None) -> None:
        super().__init__(config)
        self.generator = generator

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.generator is not None:  # else the server would wait for the answers that are being sampled
            self.generator.request_stop()
        super().handle_exit(sig, frame)


def _listen(port: int, last_port: int) -> socket.socket:
    for candidate in [port] if port else [last_port, 0]:
        # asyncio turns Nagle's algorithm off only where the protocol is named; with it, a response takes 40 ms more
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, candidate))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
    raise UserError(f"can't be used: {reason}", field="port", hint="Name another one, or leave --port out.")


def _session_file(output: Path) -> Path:
    name = hashlib.blake2b(str(output.resolve()).encode(), digest_size=8).hexdigest()
    return cache_folder("collect") / f"{name}.json"


def _read_session(file: Path) -> tuple[int, str]:
    with suppress(OSError, ValueError, TypeError, KeyError):
        values = json.loads(file.read_text())
        if len(values["token"]) >= 32:
            return int(values["port"]), str(values["token"])
    return 0, secrets.token_urlsafe(32)


def _write_session(file: Path, port: int, token: str) -> None:
    """Keep port and token. A cache that can't be written costs only the reconnection."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                json.dump({"port": port, "token": token}, stream)
