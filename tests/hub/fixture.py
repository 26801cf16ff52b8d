"""A Hub of its own for a test, with huggingface_hub pointed at it: logged in, online, an empty cache, short waits."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub.server import WRITE, Hub


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server; the client of this process speaks to it."""
    from huggingface_hub import close_session, constants, file_download
    from huggingface_hub.utils import _http

    import mlx_dpo.utils.retry

    server = Hub(tmp_path_factory.mktemp("hub"))
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the test's Hub stores by LFS
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    for name, value in environment(server, cache).items():  # for processes of its own
        monkeypatch.setenv(name, value)
    short = SimpleNamespace(sleep=lambda seconds: server.waits.append(seconds) or time.sleep(min(seconds, 0.05)))
    for module in (_http, file_download, mlx_dpo.utils.retry):  # theirs and ours
        monkeypatch.setattr(module, "time", short)
    for handler in logging.getLogger("huggingface_hub").handlers:  # its stream is that of the test that imported it
        monkeypatch.setattr(handler, "emit", lambda record: print(record.getMessage(), file=sys.stderr))
    close_session()
    yield server
    close_session()
    server.close()


def environment(server: Hub, cache: Path, token: str | None = WRITE) -> dict[str, str]:
    """What a process of its own needs in its environment to speak to the server."""
    spoken = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    spoken |= {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub")}
    return {**spoken, **({"HF_TOKEN": token} if token else {})}
