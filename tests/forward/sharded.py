"""A rank among some: `python -m tests.forward.sharded FOLDER` runs what FOLDER/cases.json asks for."""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.optimizers import Adam
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.distributed import tensor_parallel
from mlx_dpo.errors import UserError
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.forward.network import PromptSharing
from mlx_dpo.forward.policy import Policy, make_policy
from mlx_dpo.reference.reference_policy import CachedReference
from mlx_dpo.utils.random_state import random_state
from tests.distributed.ranks import finished, start
from tests.forward.families import tiny
from tests.forward.test_network import batch_of, ids

STEPS = 3
Group = Any  # mx.distributed.Group, or None


@dataclass(frozen=True)
class Case:
    """A model and how it is adapted.

    Attributes:
        model: a folder, or a family of `families`.
        spec: fields of its `AdapterSpec`.
        recomputed: share of its parts that is computed again in the backward pass.
    """

    model: str
    spec: dict[str, Any] = field(default_factory=dict)
    init_adapter: str | None = None
    recomputed: float = 0.5

    def policy(self, group: Group) -> Policy:
        """As a run starts."""
        spec = AdapterSpec(**{"fine_tune_type": "lora", "num_layers": -1, "rank": 4, "scale": 4.0, **self.spec})
        folder = Path(self.model)
        model = load_model(self.model, lazy=group is not None).model if folder.is_dir() else tiny(self.model)
        mx.random.seed(5)
        return make_policy(model, spec, self.init_adapter, group)


def moved(policy: Policy) -> nn.Module:
    """Somewhere else than at the start; the same on any number of ranks."""
    mx.random.seed(1)
    trained = tree_flatten(policy.model.trainable_parameters())
    policy.model.update(tree_unflatten([(name, 0.05 * mx.random.normal(v.shape)) for name, v in trained]))
    return policy.model.train()


def batch_for(policy: Policy) -> tuple[MicroBatch, np.ndarray]:
    """Pairs, and what each of their sequences weighs."""
    rng = random.Random(0)
    prompts = [ids(rng, n) for n in (19, 4, 1, 30)]
    batch = batch_of(prompts[:1] if policy.network.sharing is PromptSharing.ONE else prompts, seed=2)
    return batch, np.linspace(-1, 1, len(batch.sequences)).astype(np.float32)


def summed(gradients: Any, group: Group) -> Any:
    """Over ranks."""
    if group is None:
        return gradients
    flat = tree_flatten(gradients)
    return tree_unflatten([(name, mx.distributed.all_sum(v, group=group)) for name, v in flat])


def results(case: Case, group: Group) -> dict[str, np.ndarray]:
    """What is measured of a case, on one rank or on one of several."""
    policy = case.policy(group)
    found: dict[str, Any] = {f"initial/{name}": v for name, v in policy.initial_tensors.items()}
    found["fingerprint"], found["sharing"] = policy.fingerprint, policy.network.sharing.name
    found["random"] = random_state()
    frozen = {
        name: v for name, v in tree_flatten(policy.model.parameters()) if name not in trainable_tensors(policy.model)
    }
    found["bytes"] = sum(v.nbytes for v in frozen.values())
    moved(policy)
    (batch, weights), network = batch_for(policy), policy.network
    trace = network.trace(batch, round(case.recomputed * network.num_checkpointable))
    found["sums"] = trace.logps.sums
    gradient = summed(trace.gradient(weights), group)
    found |= {f"gradient/{name}": v for name, v in tree_flatten(gradient)}
    with swap_adapter(policy.model, policy.initial_tensors):
        found["reference"] = network.logps(batch).sums
    optimizer = Adam(learning_rate=1e-3, bias_correction=True, eps=1e-4)
    for _ in range(STEPS):
        optimizer.update(policy.model, summed(network.trace(batch).gradient(weights), group))
        mx.eval(policy.model.trainable_parameters(), optimizer.state)
    found |= {f"trained/{name}": v for name, v in trainable_tensors(policy.model).items()}
    return {name: np.array(value) for name, value in found.items()}


def memory(case: Case, group: Group) -> dict[str, np.ndarray]:
    """Bytes: of the weights of the whole model's blocks, the rank's, its other tensors, and the most while loading."""
    sizes = [v.nbytes for _, v in tree_flatten(load_model(case.model, lazy=True).model.layers)]
    tensor_parallel.tensor_digest = lambda tensor: str(mx.eval(tensor))  # a checksum takes some more, a chunk at a time
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    model = load_model(case.model, lazy=True).model
    tensor_parallel.shard_model(model, attach_adapter(model, AdapterSpec("lora", -1)), group)
    peak = mx.get_peak_memory() - before
    trained = trainable_tensors(model)
    frozen = {name: v.nbytes for name, v in tree_flatten(model.parameters()) if name not in trained}
    own = sum(size for name, size in frozen.items() if ".layers." in name)
    rest = sum(frozen.values()) - own + sum(v.nbytes for v in trained.values())
    found = {"whole": sum(sizes), "own": own, "rest": rest, "largest": max(frozen.values()), "peak": peak}
    return {name: np.array(value) for name, value in found.items()}


def together(case: Case, group: Group) -> dict[str, np.ndarray]:
    """What all ranks have to agree about, where each has other memory free, and another cache."""
    policy = case.policy(group)
    usable = mx.get_active_memory() + 3_000_000 + 500_000 * group.rank()
    budget = MemoryModel.for_training(policy.network, usable, None, False)
    batch, _ = batch_for(policy)
    os.environ["XDG_CACHE_HOME"] = str(Path(case.model).parent / f"cache{group.rank()}")
    sums = [_reference(policy).sums(batch), _reference(policy).cache.of(batch, _never)]  # only the first rank has it
    return {
        "bytes": np.array(budget.activation_limit),
        "kept": np.array(budget.activation_memory.bytes_per_token),
        "sums": np.array(sums),
    }


def _reference(policy: Policy) -> CachedReference:
    return CachedReference(policy.network, policy.initial_tensors, "model", policy.fingerprint)


def _never(batch: MicroBatch) -> np.ndarray:
    raise AssertionError("it is known already")


def main(folder: Path) -> None:
    """Run all cases, each rank at the same one at any time."""
    group = mx.distributed.init(backend="ring", strict=True)
    for i, given in enumerate(json.loads((folder / "cases.json").read_text())):
        what = globals()[given.pop("what")]
        try:
            found = what(Case(**given), group)
        except UserError as error:
            found = {"error": np.array(str(error))}
        np.savez(folder / f"{i}-{group.rank()}.npz", **found)


def on_ranks(size: int, folder: Path, cases: list[dict[str, Any]]) -> list[list[dict[str, np.ndarray]]]:
    """[cases][ranks] of results of `size` processes that share the models out."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    finished(start(folder, size, [sys.executable, "-m", "tests.forward.sharded", str(folder)]))
    return [[dict(np.load(folder / f"{i}-{rank}.npz")) for rank in range(size)] for i in range(len(cases))]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
