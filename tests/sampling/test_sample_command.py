"""`sample`: rows that other commands read, the same bytes however often it was interrupted, and refusals."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo import SamplingParams, UserError, sample, sample_completions
from mlx_dpo.cli import main
from mlx_dpo.data.candidate_rows import parse_candidates
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Candidates
from mlx_dpo.data.prompt_files import read_prompt_rows
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.errors import RowError, Where
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.sampling import sample_prompts
from tests.conftest import CHECKPOINT, TRL, rows_of, write_rows

PARAMS = SamplingParams(8, temperature=1.0, seed=5)
SYSTEM = {"role": "system", "content": "Be brief."}
PROMPTS: list[dict[str, Any]] = [
    {"prompt": "Name three colours.", "id": 7, "category": "colours", "chosen": "Red.", "rejected": "No."},
    {"prompt": [SYSTEM, {"role": "user", "content": "Where?"}], "tools": [{"name": "f"}]},
    {"prompt": "\n\nHuman: q\n\nAssistant:", "chat_template_kwargs": {"mood": "glad"}},
    {"question": "Who?", "completions": ["a", "b"], "scores": [1, 0]},
]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_prompts, "MIN_GROUP_PROMPTS", 2)
    monkeypatch.setattr(sample_prompts, "BATCHES_IN_GROUP", 0)


def run(prompts: Path, output: Path, params: SamplingParams = PARAMS, **how: Any) -> dict[str, Any]:
    return sample(str(CHECKPOINT), str(prompts), output, params, **{"n": 3, **how})


def test_rows_and_summary(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    summary = run(prompts, tmp_path / "out.jsonl", template_kwargs={"tone": 1})
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in rows] == [*(row["prompt"] for row in PROMPTS[:3]), "Who?"]
    assert [row["seed"] for row in rows] == [5, 6, 7, 8]
    assert (rows[0]["id"], rows[0]["category"], rows[1]["tools"]) == (7, "colours", [{"name": "f"}])
    assert rows[2]["chat_template_kwargs"] == {"tone": 1, "mood": "glad"}
    assert "chosen" not in rows[0] and "scores" not in rows[3]
    renderer = ChatRenderer(load_tokenizer(str(CHECKPOINT)), template_kwargs={"tone": 1})
    ids = [renderer.prompt_ids(row.prompt) for row in read_prompt_rows(str(prompts))]
    model, tokenizer = load_model(str(CHECKPOINT)).model, renderer.tokenizer
    expected = sample_completions(
        model, tokenizer, ids, SamplingParams(8, temperature=1.0), n=3, prompt_seeds=range(5, 9)
    )
    for row, completions in zip(rows, expected, strict=True):
        assert row["completions"] == [completion.text.strip() for completion in completions]
        assert row["token_counts"] == [len(completion.token_ids) for completion in completions]
        assert row["finish_reasons"] == [completion.finish_reason for completion in completions]
        (candidates,) = parse_candidates({**row, "completions": ["x", *row["completions"][1:2]]}, Where("f", 1))
        assert isinstance(candidates, Candidates)
        assert renderer.prompt_ids(candidates) == ids[rows.index(row)], "other commands read the same prompt"
    counts = [count for row in rows for count in row["token_counts"]]
    reasons = [reason for row in rows for reason in row["finish_reasons"]]
    assert (summary["prompts"], summary["completions"], summary["tokens"]) == (4, 12, sum(counts))
    assert summary["finish_reasons"] == {"stop": reasons.count("stop"), "length": reasons.count("length")}
    assert summary["tokens_per_second"] == pytest.approx(sum(counts) / summary["seconds"])


def test_a_prompt_alone_has_the_same_completions(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("Who?\nWhere?\n\nWhy not?\nWhen?\n")
    (tmp_path / "alone.txt").write_text("Why not?\n")
    run(tmp_path / "all.txt", tmp_path / "all.jsonl")
    run(tmp_path / "alone.txt", tmp_path / "alone.jsonl", SamplingParams(8, temperature=1.0, seed=7), batch_size=2)
    assert rows_of(tmp_path / "alone.jsonl") == [rows_of(tmp_path / "all.jsonl")[2]]


def test_with_an_adapter_and_without_chat(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Who is it?\n")
    greedy = SamplingParams(8)
    run(tmp_path / "p.txt", tmp_path / "base.jsonl", greedy)
    sample(None, str(tmp_path / "p.txt"), tmp_path / "tuned.jsonl", greedy, adapter_path=adapter_with_model(tmp_path))
    run(tmp_path / "p.txt", tmp_path / "raw.jsonl", greedy, raw=True)
    texts = [rows_of(tmp_path / f"{name}.jsonl")[0]["completions"][0] for name in ("base", "tuned", "raw")]
    assert len(set(texts)) == 3


def adapter_with_model(folder: Path) -> Path:
    """The committed adapter, with a config that names its model."""
    adapter = folder / "adapter"
    adapter.mkdir()
    config = json.loads((TRL / "adapter" / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "model": str(CHECKPOINT)}))
    (adapter / "adapters.safetensors").write_bytes((TRL / "adapter" / "adapters.safetensors").read_bytes())
    return adapter


# Resuming


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 0.999])
def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(tmp_path: Path, share: float) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Number {i}?"} for i in range(7)])
    output = tmp_path / "out.jsonl"
    summary = run(prompts, output)
    content = output.read_bytes()
    output.write_bytes(content[: int(share * len(content))])
    again = run(prompts, output)
    assert output.read_bytes() == content
    assert again["tokens"] == summary["tokens"] and again["finish_reasons"] == summary["finish_reasons"]


def test_a_complete_file_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    summary, content = run(prompts, tmp_path / "out.jsonl"), (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(sample_prompts, "load_model", None)
    again = run(prompts, tmp_path / "out.jsonl")
    assert again == {**summary, "seconds": None, "tokens_per_second": None}
    assert (tmp_path / "out.jsonl").read_bytes() == content


CHANGES: dict[str, tuple[SamplingParams, dict[str, Any]]] = {
    "temperature": (SamplingParams(8, temperature=0.9, seed=5), {}),
    "seed": (SamplingParams(8, temperature=1.0, seed=6), {}),
    "stop": (SamplingParams(8, temperature=1.0, seed=5, stop=("x",)), {}),
    "n": (PARAMS, {"n": 2}),
    "batch_size": (PARAMS, {"batch_size": 3}),
    "adapter": (PARAMS, {"adapter_path": TRL / "adapter"}),
    "prompts": (PARAMS, {"raw": True}),
}


@pytest.mark.parametrize("setting", CHANGES)
def test_other_settings_are_refused_and_the_file_stays(tmp_path: Path, setting: str) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Who?"}])
    run(prompts, tmp_path / "out.jsonl")
    content = (tmp_path / "out.jsonl").read_bytes()
    params, how = CHANGES[setting]
    with pytest.raises(UserError, match=rf"written with another {setting}\n.*another --output.*out.jsonl.sample.json"):
        run(prompts, tmp_path / "out.jsonl", params, **how)
    assert (tmp_path / "out.jsonl").read_bytes() == content


def test_files_of_others_are_refused_and_stay(tmp_path: Path) -> None:
    prompts, output = write_rows(tmp_path / "prompts.jsonl", PROMPTS), tmp_path / "out.jsonl"
    output.write_text("mine\n")
    with pytest.raises(UserError, match="`mlx-dpo sample` has not written it"):
        run(prompts, output)
    assert output.read_text() == "mine\n"
    output.unlink()
    run(prompts, output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([lines[0], b'{"prompt": 1}\n', *lines[2:]]))
    with pytest.raises(UserError, match=r"out.jsonl:2: this line is not one of `mlx-dpo sample`"):
        run(prompts, output)
    output.write_bytes(b"".join([*lines, lines[0]]))
    with pytest.raises(UserError, match="has 5 lines, and there are 4 prompts"):
        run(prompts, output)


def test_mistakes_are_found_before_anything_is_written(tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "Who?"}, {"prompt": ""}])
    with pytest.raises(RowError, match=r"bad.jsonl:2"):
        run(bad, tmp_path / "out.jsonl")
    messages = write_rows(tmp_path / "messages.jsonl", [{"prompt": "Who?"}, PROMPTS[1]])
    with pytest.raises(RowError, match=r"messages.jsonl:2: --raw takes texts"):
        run(messages, tmp_path / "out.jsonl", raw=True)
    with pytest.raises(UserError, match="no model given"):
        sample(None, str(messages), tmp_path / "out.jsonl", PARAMS)
    with pytest.raises(UserError, match="not an adapter folder"):
        run(messages, tmp_path / "out.jsonl", adapter_path=tmp_path)
    with pytest.raises(UserError, match="`n`: must be at least 1"):
        run(messages, tmp_path / "out.jsonl", n=0)
    assert not list(tmp_path.glob("out*"))


# The command


def arguments(prompts: Path, output: Path) -> list[str]:
    flags = ["--n", "2", "--max-tokens", "12", "--temperature", "1", "--seed", "4", "--batch-size", "8"]
    return ["sample", "--model", str(MODEL), "--prompts", str(prompts), "--output", str(output), *flags]


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_command_resumes_to_the_same_bytes(tmp_path: Path, kills: int) -> None:
    num_prompts = 48 * min(kills, 8)
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": row["prompt"]} for row in load_pairs("train")[:num_prompts]])
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    groups = {"MIN_GROUP_PROMPTS": 32, "BATCHES_IN_GROUP": 4}  # as in the command
    with pytest.MonkeyPatch.context() as patch:
        for name, value in groups.items():
            patch.setattr(sample_prompts, name, value)
        params = SamplingParams(12, temperature=1.0, seed=4)
        summary = sample(str(MODEL), str(prompts), whole, params, n=2, batch_size=8)
    command = [sys.executable, "-m", "mlx_dpo", *arguments(prompts, output), "--json"]
    rng, codes = random.Random(kills), set()
    for kill in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        size = output.stat().st_size if output.exists() else 0
        while process.poll() is None and (not output.exists() or output.stat().st_size <= size):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGINT if kill % 2 else signal.SIGKILL)
        codes.add(process.wait())
        if rng.random() < 0.3:
            with output.open("ab") as file:
                file.write(b'{"prompt": "torn')
    # A SIGINT while the interpreter ends, after the command, has the system's default action.
    assert codes - {0} and codes <= {0, 130, -signal.SIGKILL, -signal.SIGINT}
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.read_bytes() == whole.read_bytes()
    printed = json.loads(again.stdout)
    names = ("prompts", "completions", "tokens", "finish_reasons")
    assert printed["output"] == str(output)
    assert [printed[name] for name in names] == [summary[name] for name in names]


def test_the_command_prints_where_the_rows_are_and_refuses_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, output = write_rows(tmp_path / "p.jsonl", [{"prompt": "Who?"}]), tmp_path / "out.jsonl"

    def exit_code(*flags: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["mlx-dpo", *arguments(prompts, output), *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    assert exit_code() == 0
    printed = capsys.readouterr().out
    assert "1 prompts, 2 completions" in printed and "tokens a second" in printed and str(output) in printed
    assert exit_code() == 0 and "all of them were there already" in capsys.readouterr().out
    assert exit_code("--seed", "5") == 2
    refused = capsys.readouterr()
    assert refused.out == "" and "written with another seed" in refused.err
