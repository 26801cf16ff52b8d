"""A model split over ranks on this machine, compared with the whole model: numbers, memory and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.adapters.attach import trainable_tensors
from tests.distributed.sharded_worker import Case, batch_for, measure, on_ranks, set_random_adapter
from tests.forward import test_architectures
from tests.forward.test_architectures import QUANTIZATIONS, make_model
from tests.forward.test_network import plainly

RankResults = list[dict[str, np.ndarray]]  # of each rank

TRAINED = [("llama", "4bit"), ("qwen3", "float32"), ("qwen3_moe", "4bit")]  # the last has a router, and experts
FAMILIES = ["gpt_oss", "deepseek_v32"]  # of `families`, float32; the second would lose gradients
FAMILIES += ["qwen3_5"]  # queries, keys and values in one product; a sharded head
MORE_TRAINED = [("llama", "float32"), ("llama", "mxfp4"), ("qwen3", "4bit"), ("qwen2", "float32")]
MORE_TRAINED += [("qwen3_moe", "float32")]
MORE_FAMILIES = ["glm4_moe", "iquestloopcoder", "ministral3", "deepseek_v3", "minimax"]
SPECS: dict[str, dict[str, Any]] = {
    "some layers": {"num_layers": 1},
    "some keys": {"keys": ["self_attn.q_proj", "mlp.down_proj"]},
    "dropout": {"dropout": 0.3},
}
REFUSED = {
    "dora": (("llama", "4bit"), {"spec": {"fine_tune_type": "dora"}}, "supports lora, not dora"),
    "full": (("llama", "float32"), {"spec": {"fine_tune_type": "full"}}, "supports lora, not full"),
    "fuse_bits": (("llama", "4bit"), {"spec": {"fuse_bits": 4}}, "combined with --fuse-bits"),
    "no shard": (("gemma2", "float32"), {}, "mlx-lm can't split a model of this type (gemma2)"),
    "lost": (
        "deepseek_v2",
        {},
        "mlx-lm's sharding of a model of type deepseek_v2 loses gradients",
    ),
    "groups": (("odd", "4bit"), {}, "mlx-lm can't split this model over 2 ranks"),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], str]:
    """Makes folders of (family, weights) models when they are first used; returns a family alone unchanged."""
    root = tmp_path_factory.mktemp("models")

    def model(spec: Any) -> str:
        if isinstance(spec, str):
            return spec
        family, weights = spec
        variants = {"odd": {"intermediate_size": 96}, "large": {"hidden_size": 512, "num_hidden_layers": 8}}
        name, settings = ("llama", variants[family]) if family in variants else (family, {})
        if family.endswith("-4 heads"):
            name, settings = family.removesuffix("-4 heads"), {"num_key_value_heads": 4}
        folder = root / f"{family}-{weights}"
        if not folder.exists():
            plain = test_architectures.FAMILIES[name]
            test_architectures.FAMILIES[name] = {**plain, **settings, "tie_word_embeddings": False}
            try:
                make_model(folder, name, QUANTIZATIONS[weights])
            finally:
                test_architectures.FAMILIES[name] = plain
        return str(folder)

    return model


@pytest.fixture(scope="session")
def two(models: Callable[[Any], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, RankResults]:
    """The results of everything that runs on two ranks, run at once."""
    cases = {"-".join(of): Case(models(of)) for of in TRAINED}
    cases |= {family: Case(family) for family in FAMILIES}
    cases |= {name: Case(models(("llama", "float32")), spec) for name, spec in SPECS.items()}
    cases |= {name: Case(models(of), **how) for name, (of, how, _) in REFUSED.items()}
    cases["adapter folder"] = adapter_folder_case(models)
    jobs = [{"job": "measure", **asdict(case)} for case in cases.values()]
    jobs.append({"job": "decisions", "model": models(("llama", "float32"))})
    jobs.append({"job": "memory", "model": models(("large", "float32"))})
    results = on_ranks(2, tmp_path_factory.mktemp("two") / "ranks", jobs)
    return dict(zip([*cases, "decisions", "memory"], results, strict=True))


def adapter_folder_case(models: Callable[[Any], str]) -> Case:
    """A case that starts from an adapter that mlx-lm saved, with dropout."""
    model = models(("llama", "4bit"))
    folder = Path(model).parent / "adapter"
    if not folder.exists():
        folder.mkdir()
        policy = Case(model, {"dropout": 0.5}).policy(None)
        mx.save_safetensors(str(folder / "adapters.safetensors"), trainable_tensors(set_random_adapter(policy)))
        (folder / "adapter_config.json").write_text(json.dumps(policy.spec.to_json()))
    return Case(model, init_adapter=str(folder))


def check(case: Case, ranks: RankResults) -> None:
    """Compare all results of several ranks with those of the whole model."""
    whole = measure(case, None)
    assert "error" not in ranks[0], str(ranks[0]["error"])
    largest = max(np.abs(v).max() for name, v in whole.items() if name.startswith("gradient/"))
    for rank in ranks:
        assert rank.keys() == whole.keys()
        for name in ("fingerprint", "sharing", "random"):
            assert rank[name] == whole[name], name
        for name in whole:
            if name.startswith("initial/"):
                np.testing.assert_array_equal(rank[name], whole[name], err_msg=name)
            elif name.startswith("gradient/"):
                np.testing.assert_allclose(rank[name], whole[name], atol=1e-5 * largest, rtol=0, err_msg=name)
            elif name.startswith("trained/"):
                np.testing.assert_allclose(rank[name], whole[name], atol=1e-5, err_msg=name)
            elif name in ("sums", "reference"):
                np.testing.assert_allclose(rank[name], whole[name], rtol=1e-5, err_msg=name)
    for name in ranks[0]:
        if name != "bytes":
            assert all((rank[name] == ranks[0][name]).all() for rank in ranks), f"ranks differ about {name}"


def check_plainly(case: Case, rank: dict[str, np.ndarray]) -> None:
    policy = case.policy(None)
    sums, gradient = plainly(set_random_adapter(policy), *batch_for(policy))
    np.testing.assert_allclose(rank["sums"], sums, rtol=1e-5, atol=1e-4)
    largest = max(mx.abs(g).max().item() for g in gradient.values())
    for name, g in gradient.items():
        np.testing.assert_allclose(rank[f"gradient/{name}"], np.array(g), atol=1e-5 * largest, rtol=0, err_msg=name)


@pytest.mark.parametrize("of", TRAINED, ids="-".join)
def test_two_ranks_train_as_one(of: tuple[str, str], models: Callable[[Any], str], two: dict[str, RankResults]) -> None:
    check(Case(models(of)), two["-".join(of)])
    check_plainly(Case(models(of)), two["-".join(of)][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family: str, two: dict[str, RankResults]) -> None:
    check(Case(family), two[family])
    check_plainly(Case(family), two[family][0])


@pytest.mark.slow
def test_more_models(models: Callable[[Any], str], tmp_path: Path) -> None:
    cases = [Case(models(of)) for of in [*MORE_TRAINED, *MORE_FAMILIES]]
    results = on_ranks(2, tmp_path / "ranks", [{"job": "measure", **asdict(case)} for case in cases])
    for case, ranks in zip(cases, results, strict=True):
        check(case, ranks)
        check_plainly(case, ranks[0])


@pytest.mark.parametrize("name", SPECS)
def test_other_adapters(name: str, models: Callable[[Any], str], two: dict[str, RankResults]) -> None:
    check(Case(models(("llama", "float32")), SPECS[name]), two[name])


def test_an_adapter_to_start_from(models: Callable[[Any], str], two: dict[str, RankResults]) -> None:
    check(adapter_folder_case(models), two["adapter folder"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused(name: str, two: dict[str, RankResults]) -> None:
    for rank in two[name]:
        message, hint = str(rank["error"]).split("\n")
        assert message.startswith("`tensor_parallel`: ") and REFUSED[name][2] in message
        assert hint.endswith(".")


def test_ranks_decide_together(two: dict[str, RankResults]) -> None:
    first, second = two["decisions"]
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    np.testing.assert_array_equal(first["sums"][0], first["sums"][1])


def test_a_rank_holds_its_part_and_at_most_one_whole_tensor(two: dict[str, RankResults]) -> None:
    for rank in two["memory"]:
        assert 0.5 * rank["whole"] < rank["own"] < 0.51 * rank["whole"]  # norms are whole
        assert rank["peak"] < rank["own"] + rank["rest"] + 2 * rank["largest"] < rank["whole"]


@pytest.mark.slow  # two ranks are tested family by family
def test_four_ranks(models: Callable[[Any], str], tmp_path: Path) -> None:
    jobs = [("llama-4 heads", "4bit"), ("qwen3-4 heads", "float32"), ("llama", "float32")]
    cases = [Case(models(of)) for of in jobs]
    *trained, refused = on_ranks(4, tmp_path / "ranks", [{"job": "measure", **asdict(case)} for case in cases])
    for case, ranks in zip(cases[:2], trained, strict=True):
        check(case, ranks)
    for rank in refused:  # the last
        assert "4 attention heads and 2 key-value heads, which can't be split over 4 ranks" in str(rank["error"])
        assert str(rank["error"]).endswith("Use 2 ranks.")
