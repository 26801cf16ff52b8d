"""The training view's requests: the settings, what a run would do, and where it may be written."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.web import background_run
from mlx_dpo.web.answer_generator import AnswerGenerator
from mlx_dpo.web.background_run import BackgroundRun
from mlx_dpo.web.page_app import CollectPage
from mlx_dpo.web.training_routes import TrainingRoutes
from mlx_dpo.web.verdicts import VerdictFiles
from tests.web.collect_server_process import wait_for

MODEL = "mlx_dpo/demo/model"
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}
LABEL = {"prompt": "Hi", "completion": "Hello", "label": True}


class Training:
    """The requests of a page whose model is never loaded; what it would start is in `started`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.started = folder, list[list[str]]()
        monkeypatch.setattr(BackgroundRun, "start", lambda run, path, arguments: self.started.append(list(arguments)))
        self.generator = AnswerGenerator(MODEL)
        self.page = CollectPage(self.generator, VerdictFiles(folder / "pairs.jsonl"))
        self.client = TestClient(self.page.application())

    def write(self, *rows: Any, name: str = "pairs.jsonl") -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def form(self) -> dict[str, Any]:
        return dict(self.client.get("/api/training/form").json())

    def losses(self) -> list[str]:
        return [loss["name"] for loss in self.form()["losses"]]

    def post(self, action: str, status: int = 200, **settings: Any) -> dict[str, Any]:
        response = self.client.post(f"/api/training/{action}", json={"settings": settings})
        assert response.status_code == status, response.text
        return dict(response.json())

    def problem(self, **settings: Any) -> dict[str, Any]:
        return dict(self.post("outline", **settings)["problem"])


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path, monkeypatch)


def test_the_form_has_the_defaults_and_helps_of_the_command(training: Training) -> None:
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    settings = training.form()["settings"]
    assert {setting["name"] for setting in settings} > {"loss", "learning_rate", "epochs", "rank", "max_length"}
    for setting in settings:
        field = fields[setting["name"]]
        assert (setting["default"], setting["help"]) == (field.default, field.metadata["help"])
    (training.folder / "adapters").mkdir()
    assert training.form()["settings"][-1]["default"] == "adapters-2"


def test_losses_that_fit_the_rows(training: Training) -> None:
    assert {"sigmoid", "kto", "sft"} < set(training.losses())
    training.write(LABEL, name="pairs.labels.jsonl")
    assert training.losses() == ["kto"]
    outline = training.post("outline", loss="kto")
    assert outline["source"].endswith("pairs.labels.jsonl") and outline["kind"] == "completions"
    assert training.problem(loss="sigmoid")["field"] == "loss"
    training.write(PAIR)
    assert "sigmoid" in training.losses()
    assert training.post("outline", loss="sft")["source"].endswith("pairs.jsonl")


def test_what_a_run_would_do(training: Training) -> None:
    assert "no rows" in training.problem()["message"]
    training.write(*[PAIR] * 20, {"prompt": "Hi", "completions": ["a", "b"], "scores": [0, 0]})  # a tie makes no pair
    outline = training.post("outline", epochs=3, batch_size=4)
    assert (outline["num_training"], outline["num_held_out"], outline["steps"]) == (18, 2, 15)
    assert training.post("outline", epochs=3, iters=5)["steps"] == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("learning_rate", -1), ("learning_rate", "fast"), ("epochs", 0), ("batch_size", 0), ("rank", 1.5)],
        *[("max_length", True), ("iters", "1e"), ("beta", [1]), ("loss", "dpo"), ("loss", "rm"), ("loss", "sigmoid=1")],
    ],
)
def test_errors_name_their_field(training: Training, field: str, value: Any) -> None:
    training.write(PAIR)
    assert training.problem(**{field: value})["field"] == field
    assert training.post("start", status=400, **{field: value})["field"] == field
    assert training.started == [] and not (training.folder / "adapters").exists()


@pytest.mark.parametrize(
    "values", [{"model": "/etc"}, {"data": "/etc/passwd"}, {"push_to_hub": True}, {"judge": "x.py:f"}]
)
def test_no_other_settings(training: Training, values: dict[str, Any]) -> None:
    training.write(PAIR)
    assert "must be an object of" in training.post("start", status=400, **values)["message"]
    for body in ({"settings": None}, {"settings": [1]}, {}):
        assert training.client.post("/api/training/start", json=body).status_code == 400
    assert training.started == []


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".", ".x", "-x", "a\0b", "a\nb", "x" * 300])
def test_no_folder_elsewhere(training: Training, name: str) -> None:
    training.write(PAIR)
    before = sorted(training.folder.parent.rglob("*"))
    assert training.post("start", status=400, adapter_path=name)["field"] == "adapter_path"
    assert training.started == [] and sorted(training.folder.parent.rglob("*")) == before


def test_no_folder_that_is_taken(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training.write(PAIR)
    assert training.post("start", status=400, adapter_path="pairs.jsonl")["field"] == "adapter_path"
    old = training.folder / "old"
    old.mkdir()
    (old / "adapters.safetensors").touch()
    assert training.post("start", status=400, adapter_path="old")["field"] == "adapter_path"
    monkeypatch.setattr(RunFolder, "unfinished_checkpoint", lambda self: self.path)
    assert "not finished" in training.post("start", status=400, adapter_path="new")["message"]
    assert training.started == []


def test_what_is_started(training: Training) -> None:
    name = "<b>; $(x)'"
    training.write(*[PAIR] * 3)
    training.post("start", adapter_path=name, loss="ipo", learning_rate=2e-5, iters=2000)
    folder = training.folder / name
    expected = TrainConfig(
        model=str(Path(MODEL).resolve()),
        data=str(folder / "rows.jsonl"),
        loss="ipo",
        learning_rate=2e-5,
        iters=2000,
        steps_per_report=10,
        adapter_path=str(folder),
    )
    (arguments,) = training.started
    assert arguments[0] == "train"
    given = {flag[2:].replace("-", "_"): value for flag, value in zip(arguments[1::2], arguments[2::2], strict=True)}
    for value in ("beta", "rank"):
        assert value not in given
    assert {key: str(expected.to_mapping()[key]) for key in given} == given
    training.write(PAIR)  # what is collected meanwhile is not for this run
    assert (folder / "rows.jsonl").read_text() == (json.dumps(PAIR) + "\n") * 3
    assert training.generator.release_reason


def test_rendering_options_are_passed_on(tmp_path: Path) -> None:
    generator = AnswerGenerator(MODEL, raw=True, template_kwargs={"enable_thinking": False})
    config = TrainingRoutes(VerdictFiles(tmp_path / "pairs.jsonl"), generator).form.config({})
    assert config.raw and config.chat_template_kwargs == {"enable_thinking": False}


def test_nothing_to_stop_resume_load_or_report(training: Training) -> None:
    for action in ("resume", "adapter"):
        assert "nothing was trained" in training.post(action, status=400)["message"]
    assert training.client.get("/api/training/report").status_code == 400
    assert training.post("stop") == {"is_stopping": False}
    assert training.client.get("/api/training").json()["run"] is None


@pytest.mark.parametrize(
    "name", ["page.css", "../html_report.py", "%2e%2e/html_report.py", "/etc/passwd", "vendor/..", ""]
)
def test_no_file_but_the_scripts_of_the_charts(training: Training, name: str) -> None:
    assert training.client.get(f"/report-assets/{name}").status_code == 404
    assert training.client.get("/report-assets/charts.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "log", ["", "{}", "[]", '{"folder": 1, "arguments": 2}', '{"folder": "x", "arguments": ["a"]}\nx\n']
)
def test_a_damaged_log_is_no_run(tmp_path: Path, log: str) -> None:
    path = tmp_path / "pairs.train.log"
    path.write_text(log)
    run = BackgroundRun(path)
    assert run.read() is None and not run.is_running() and not run.interrupt()


STARTED_AND_KILLED = """
import os, sys
from pathlib import Path
from mlx_dpo.web.background_run import BackgroundRun
BackgroundRun(Path(sys.argv[1])).start(Path("run"), ["losses", "--json"])
os.kill(os.getpid(), 9)
"""


def test_a_run_outlives_the_kill_of_its_server(tmp_path: Path) -> None:
    path = tmp_path / "pairs.train.log"
    killed = subprocess.run([sys.executable, "-c", STARTED_AND_KILLED, str(path)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    run = BackgroundRun(path)  # of the next server
    assert run.is_running()
    wait_for(lambda: (log := run.read()) and log.process_id)
    log = run.read()
    assert log and log.process_id and os.getsid(log.process_id) == log.process_id  # no terminal's signal reaches it
    wait_for(lambda: not run.is_running())
    log = run.read()
    assert log and log.output.endswith("]}\n")


def test_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_run, "_LOCK_ATTEMPTS", 2)  # in the time of all of them, the run may end
    runs = [BackgroundRun(tmp_path / "pairs.train.log") for _ in range(2)]  # of two servers
    runs[0].start(tmp_path / "a", ["losses", "--json"])
    assert all(run.is_running() for run in runs)
    with pytest.raises(UserError, match="in progress"):
        runs[1].start(tmp_path / "b", ["losses"])
    log = runs[1].read()
    assert log and log.folder == tmp_path / "a" and log.arguments == ["losses", "--json"]
    wait_for(lambda: not runs[1].is_running())
    log = runs[1].read()
    assert log and log.process_id and log.output.endswith("]}\n")
