"""Nothing that comes with a model or with data is run, and nothing secret is written down."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_dpo import TrainConfig, UserError, evaluate, train
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from tests.conftest import CHECKPOINT, PAIRS, rows_of, write_rows

TOKEN = "hf_" + "secretsecretsecretsecretsecret1234"


def changed(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_models_own_code_is_not_run(checkpoint: Path) -> None:
    marker = checkpoint / "was_run"
    (checkpoint / "own.py").write_text(f"open({str(marker)!r}, 'w')\nraise SystemExit(7)\n")
    changed(checkpoint / "config.json", model_file="own.py")
    with pytest.raises(UserError, match="runs no code that comes with a model"):
        load_model(str(checkpoint))
    changed(checkpoint / "config.json", model_file=None)
    changed(checkpoint / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    try:
        load_tokenizer(str(checkpoint))  # without it, where that can be
    except UserError as error:
        assert "Traceback" not in str(error)
    assert not marker.exists()


def test_no_pickle_is_read(tmp_path: Path, checkpoint: Path) -> None:
    """An adapter or a model whose tensors are a pickle is refused, and the pickle is not opened."""
    marker = tmp_path / "was_run"

    class Bomb:
        def __reduce__(self) -> object:
            return (open, (str(marker), "w"))

    bomb = pickle.dumps(Bomb())
    adapter = tmp_path / "adapter"
    train(TrainConfig(model=str(CHECKPOINT), data=str(PAIRS), adapter_path=str(adapter), iters=1, valid_pairs=0))
    for file in (adapter / "adapters.safetensors", checkpoint / "model.safetensors"):
        file.write_bytes(bomb)
    with pytest.raises(UserError, match="damaged"):
        evaluate(TrainConfig(model=str(CHECKPOINT), data=str(PAIRS)), adapter_path=adapter)
    with pytest.raises(UserError, match="can't be loaded"):
        load_model(str(checkpoint))
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(UserError, match="No safetensors"):
        load_model(str(checkpoint))
    assert not marker.exists()


def test_no_code_of_ours_unpickles() -> None:
    package = Path(__file__).parent.parent / "mlx_dpo"
    code = {file: file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    for words in ("import pickle", "torch.load", "allow_pickle=True", "np.load(", " eval(", "trust_remote_code=True"):
        found = [
            file.name for file, text in code.items() if words in text.replace("mx.eval(", "").replace(".eval(", "")
        ]
        assert not found, (words, found)


def test_tokens_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = tmp_path / "run"
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", run, "--iters", "2", "--save-every", "1")
    ran = subprocess.run([sys.executable, "-m", "mlx_dpo", "train", *map(str, flags)], capture_output=True, text=True)
    assert ran.returncode == 0 and TOKEN not in ran.stdout + ran.stderr
    for file in run.rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes(), file


def test_html_of_rows_and_names_is_text_on_the_page(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    data = write_rows(tmp_path / f"{bad.replace('/', '_')}.jsonl", rows_of(PAIRS))
    run = tmp_path / "run"
    flags = ("--model", CHECKPOINT, "--data", data, "--adapter-path", run, "--iters", "1")
    subprocess.run([sys.executable, "-m", "mlx_dpo", "train", *map(str, flags)], check=True, capture_output=True)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
