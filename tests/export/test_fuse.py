"""`fuse` from a run's folder to a model that plain mlx-lm loads, and what it says of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlx_dpo import TrainConfig, evaluate, train
from mlx_dpo.export.fuse.adapted_model import AdaptedModel
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
from tests.cli.conftest import CommandResult, mlx_dpo  # noqa: F401
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows
from tests.forward.test_architectures import QUANTIZATIONS, make_model
from tests.plain import completion_ids, metrics

Cli = Callable[..., CommandResult]
BETA = 0.3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit model, a run whose small update 4 bits drown, and one that was trained to be fused."""
    folder = tmp_path_factory.mktemp("fuse")
    model = make_model(folder / "model", "qwen3", QUANTIZATIONS["4bit"])
    for name, fuse_bits in (("plain", None), ("aware", 4)):
        settings: dict[str, Any] = {"iters": 8, "learning_rate": 3e-4, "beta": BETA, "fuse_bits": fuse_bits}
        train(config(folder, adapter_path=str(folder / name), valid_data=str(PAIRS), **settings))
    assert (folder / "model") == model
    return folder


def config(home: Path, **overrides: Any) -> TrainConfig:
    return TrainConfig(model=str(home / "model"), data=str(PAIRS), **{"beta": BETA, **overrides})


def flags(home: Path, run: str, into: Path, *others: object) -> tuple[object, ...]:
    return "fuse", "--model", home / "model", "--adapter-path", home / run, "--save-path", into, *others


def margin(home: Path, model: Path) -> float:
    """Of a folder that plain mlx-lm loads, by numpy."""
    loaded, tokenizer = mlx_lm.load(str(model))
    base, _ = mlx_lm.load(str(home / "model"))
    return metrics(loaded, base, tokenizer, rows_of(PAIRS), BETA)["rewards/margins"]


def kl(home: Path, run: str, model: Path) -> float:
    """A token's, over the completions, of the adapter's policy from a folder's, by numpy."""
    fused, tokenizer = mlx_lm.load(str(model))
    adapted, _ = mlx_lm.load(str(home / "model"), adapter_path=str(home / run))
    token_kls = []
    for row in rows_of(PAIRS):
        for side in ("chosen", "rejected"):
            prompt, completion = completion_ids(tokenizer, row["prompt"], row[side])
            ids = mx.array([[*prompt, *completion]])
            p, q = (np.array(one(ids)[0], np.float64)[len(prompt) - 1 : -1] for one in (adapted, fused))
            p, q = (one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in (p, q))
            token_kls += (np.exp(p) * (p - q)).sum(-1).tolist()
    return float(np.mean(token_kls))


def test_auto_keeps_the_margin_in_fewer_bytes(mlx_dpo: Cli, home: Path, tmp_path: Path) -> None:  # noqa: F811
    ran = mlx_dpo(*flags(home, "plain", tmp_path / "f", "--json"))
    assert ran.code == 0, ran.err
    output = json.loads(ran.out)
    base, adapter, *tried, fused = output["models"]
    assert fused["kept"] >= 0.95 > tried[0]["kept"] and tried[0]["bits"] == "4"
    assert base["bytes"] < fused["bytes"] < 2 * base["bytes"]
    assert (
        fused["bytes"]
        == output["bytes"]
        == sum(v.nbytes for v in mx.load(str(tmp_path / "f/model.safetensors")).values())
    )
    # what is said is what is there
    assert adapter["margin"] == pytest.approx(
        evaluate(config(home), adapter_path=home / "plain")["rewards/margins"], rel=1e-6
    )
    assert fused["margin"] == pytest.approx(margin(home, tmp_path / "f"), rel=1e-3)
    assert fused["kept"] == pytest.approx(fused["margin"] / adapter["margin"], rel=1e-9)
    assert fused["kl"] == pytest.approx(kl(home, "plain", tmp_path / "f"), rel=2e-2)
    quantization = json.loads((tmp_path / "f" / "config.json").read_text())["quantization"]
    for name, precision in output["layers"].items():
        assert quantization.get(name, QUANTIZATIONS["4bit"]) == precision
    card = (tmp_path / "f" / "README.md").read_text()
    assert f"{fused['margin']:.3f}" in card and f"{fused['kept']:.1%}" in card


def test_the_folder_is_what_was_measured_to_the_bit(home: Path, tmp_path: Path) -> None:
    done = fuse_adapter(str(home / "model"), home / "plain", tmp_path / "f")
    measured = AdaptedModel(str(home / "model"), home / "plain").load_fused(done.plan)
    loaded, _ = mlx_lm.load(str(tmp_path / "f"))
    ids = mx.array([[5, 6, 7, 8, 9]])
    assert mx.array_equal(loaded(ids), measured(ids))
    before, after = (mx.load(str(f / "model.safetensors")) for f in (home / "model", tmp_path / "f"))
    others = [name for name in before if not any(name.startswith(f"{layer}.") for layer in done.plan)]
    assert any("embed_tokens" in name for name in others)
    assert all(mx.array_equal(before[name], after[name]) for name in others)


def test_below_the_floor_it_refuses_and_says_what_loses_nothing(
    mlx_dpo: Cli,  # noqa: F811
    home: Path,
    tmp_path: Path,
) -> None:
    ran = mlx_dpo(*flags(home, "plain", tmp_path / "f", "--bits", "same"))
    assert ran.code == 2 and not (tmp_path / "f").exists() and ran.out == ""
    assert "less than 95%" in ran.err and "loses nothing" in ran.err and "--force" in ran.err
    assert re.search(r"fused .* 4 ", ran.err), "the table comes all the same"
    assert mlx_dpo(*flags(home, "plain", tmp_path / "f", "--bits", "same", "--force")).code == 0
    assert margin(home, tmp_path / "f") < 0.95 * evaluate(config(home), adapter_path=home / "plain")["rewards/margins"]


def test_trained_to_be_fused_it_keeps_all_at_the_bases_size(mlx_dpo: Cli, home: Path, tmp_path: Path) -> None:  # noqa: F811
    ran = mlx_dpo(*flags(home, "aware", tmp_path / "f"))
    assert ran.code == 0 and "100.0%" in ran.out
    before, after = (mx.load(str(f / "model.safetensors")) for f in (home / "model", tmp_path / "f"))
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}
    assert [k for k in before if not mx.array_equal(before[k], after[k]) and not k.endswith(".biases")] == []
    trained = evaluate(config(home), adapter_path=home / "aware")["rewards/margins"]
    assert margin(home, tmp_path / "f") == pytest.approx(trained, rel=1e-4)


@pytest.mark.parametrize("bits", ["5", "6", "8"])
def test_bits_by_hand(mlx_dpo: Cli, home: Path, tmp_path: Path, bits: str) -> None:  # noqa: F811
    ran = mlx_dpo(*flags(home, "plain", tmp_path / "f", "--bits", bits, "--force", "--json"))
    layers = json.loads(ran.out)["layers"]
    assert {precision["bits"] for precision in layers.values()} == {int(bits)} and len(layers) == 14
    loaded, _ = mlx_lm.load(str(tmp_path / "f"))
    assert loaded.model.layers[1].mlp.up_proj.bits == int(bits) and loaded.model.embed_tokens.bits == 4


def test_without_held_out_pairs(mlx_dpo: Cli, home: Path, tmp_path: Path) -> None:  # noqa: F811
    for name in ("plain", "aware"):
        (tmp_path / name).mkdir()
        for file in ("adapters.safetensors", "adapter_config.json"):
            shutil.copy(home / name / file, tmp_path / name)
    ran = mlx_dpo(*flags(tmp_path, "plain", tmp_path / "f")[:1], "--adapter-path", tmp_path / "plain")
    assert ran.code == 2 and "--calibrate FILE" in ran.err and "config.yaml" in ran.err
    given = ("fuse", "--adapter-path", tmp_path / "plain", "--save-path", tmp_path / "given", "--calibrate", PAIRS)
    ran = mlx_dpo(*given, "--json")
    assert ran.code == 0 and json.loads(ran.out)["kept"] >= 0.95
    for name, more in (("plain", ("--bits", "8")), ("aware", ())):
        ran = mlx_dpo("fuse", "--adapter-path", tmp_path / name, "--save-path", tmp_path / f"f-{name}", *more)
        assert ran.code == 0 and "Not measured" in ran.out and "--calibrate" in ran.out


def test_an_adapter_that_adds_nothing(mlx_dpo: Cli, home: Path, tmp_path: Path) -> None:  # noqa: F811
    """On pairs the other way round there is no margin to keep."""
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows_of(PAIRS)]
    file = write_rows(tmp_path / "turned.jsonl", turned)
    ran = mlx_dpo(*flags(home, "plain", tmp_path / "f", "--calibrate", file))
    assert ran.code == 2 and "nothing to keep" in ran.err and "--calibrate" in ran.err
    ran = mlx_dpo(*flags(home, "plain", tmp_path / "f", "--calibrate", file, "--bits", "8"))
    assert ran.code == 0 and "nothing to keep" in ran.out


def test_card_and_record_are_there_with_the_model_or_not_at_all(
    mlx_dpo: Cli,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that ends while it writes the card leaves no folder, so that the same command makes all of it."""
    from mlx_dpo.export.card import model_card

    folder = tmp_path / "mine"
    flags = ("fuse", "--model", CHECKPOINT, "--adapter-path", TRL / "adapter", "--bits", "none", "--save-path", folder)

    def killed(*arguments: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(model_card, "render_card", killed)
        assert mlx_dpo(*flags).code == 137
    assert list(tmp_path.iterdir()) == []
    assert mlx_dpo(*flags).code == 0
    assert "# mine\n" in (folder / "README.md").read_text() and (folder / "training.json").is_file()
