"""Train on the bundled model, push, download into an empty cache, load with plain mlx_lm: each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_dpo.demo import MODEL, PAIRS
from tests.hub.fixture import environment
from tests.hub.server import Hub

# No mlx_dpo in it: what anybody would type.
PLAIN = """
import json, sys
import mlx.core as mx, mlx_lm
from huggingface_hub import snapshot_download

base, adapter_repo, model_repo, local_adapter, local_model = sys.argv[1:]
fetched = snapshot_download(adapter_repo)
ids = lambda tokenizer: tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is 2 times 5?"}], add_generation_prompt=True
)
told = {}
for name, load, local in (
    ("adapter", lambda: mlx_lm.load(base, adapter_path=fetched), lambda: mlx_lm.load(base, adapter_path=local_adapter)),
    ("model", lambda: mlx_lm.load(model_repo), lambda: mlx_lm.load(local_model)),
):
    model, tokenizer = load()
    here, _ = local()
    prompt = ids(tokenizer)
    same = mx.array_equal(model(mx.array([prompt])), here(mx.array([prompt]))).item()
    told[name] = {"same": same, "answer": mlx_lm.generate(model, tokenizer, prompt, max_tokens=12)}
print(json.dumps(told))
"""


def process(server: Hub, cache: Path, *arguments: object) -> str:
    ran = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **environment(server, cache)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow  # each part has tests of its own
def test_there_and_back(hub: Hub, tmp_path: Path) -> None:
    run, fused, here = tmp_path / "polite", tmp_path / "polite-fused", tmp_path / "here"
    cli = ("-m", "mlx_dpo")
    settings = ("--iters", 6, "--learning-rate", "2e-4", "--beta", 0.6, "--label-smoothing", 0.1, "--valid-pairs", 8)
    output = process(
        *(hub, here, *cli, "train", "--model", MODEL, "--data", PAIRS / "train.jsonl", "--adapter-path", run),
        *(*settings, "--push-to-hub", "--hub-model-id", "tester/polite", "--json"),
    )
    assert json.loads(output)["pushed"]["private"] is True
    process(hub, here, *cli, "fuse", "--adapter-path", run, "--save-path", fused, "--bits", 8, "--force")
    process(hub, here, *cli, "push", fused, "--repo-id", "polite-fused")
    plain = (MODEL, "tester/polite", "tester/polite-fused", run, fused)
    result = json.loads(process(hub, tmp_path / "empty", "-c", PLAIN, *plain))
    assert result["adapter"]["same"] and result["model"]["same"]
    assert result["adapter"]["answer"].strip() and result["model"]["answer"].strip()
    assert (tmp_path / "empty" / "hub" / "models--tester--polite-fused").is_dir()
