"""Nearly every model type of mlx-lm is fused to what it was with the adapter, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.family_fuse import CASES, REFUSALS, fuse_family
from tests.forward.families import CONFIGS

# One of each kind of layer: dense, experts, latent attention, state space, gated delta, convolutions, a model inside
# another, several adapters in one layer, and those that are refused.
QUICK = ("afm7", "baichuan_m1", "bitnet", "deepseek_v3", "gemma3", "gpt_oss", "lfm2", "llama", "mamba2", "qwen3_next")


@pytest.mark.filterwarnings("ignore")  # transformers on configs of types that it does not know
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CONFIGS]
)
def test_a_type_is_fused_or_refused(tmp_path: Path, family: str, case: str) -> None:
    outcome = fuse_family(tmp_path, family, CASES[case])
    if refusal := REFUSALS.get(family, {}).get(case):
        assert outcome.refusal.startswith(refusal) and "\n" not in outcome.refusal
        assert not (tmp_path / "fused").exists()
        return
    assert outcome.refusal == ""
    assert outcome.error <= CASES[case].tolerance < 0.09 < outcome.update


def test_the_table_names_types_that_are_there() -> None:
    assert set(REFUSALS) <= set(CONFIGS) and set(QUICK) <= set(CONFIGS)
