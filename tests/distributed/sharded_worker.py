"""A tensor-parallel rank: `python -m tests.distributed.sharded_worker FOLDER` runs the jobs in FOLDER/cases.json."""

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
from tests.distributed.ranks import outputs, start_ranks
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
        checkpointed: share of its modules that is recomputed in the backward pass.
    """

    model: str
    spec: dict[str, Any] = field(default_factory=dict)
    init_adapter: str | None = None
    checkpointed: float = 0.5

    def policy(self, group: Group) -> Policy:
        """The policy at the start of a run."""
        spec = AdapterSpec(**{"fine_tune_type": "lora", "num_layers": -1, "rank": 4, "scale": 4.0, **self.spec})
        folder = Path(self.model)
        model = load_model(self.model, lazy=group is not None).model if folder.is_dir() else tiny(self.model)
        mx.random.seed(5)
        return make_policy(model, spec, self.init_adapter, group)


def set_random_adapter(policy: Policy) -> nn.Module:
    """Set the adapter to random values, equal for any number of ranks, and return the model."""
    mx.random.seed(1)
    trained = tree_flatten(policy.model.trainable_parameters())
    policy.model.update(tree_unflatten([(name, 0.05 * mx.random.normal(v.shape)) for name, v in trained]))
    return policy.model.train()


def batch_for(policy: Policy) -> tuple[MicroBatch, np.ndarray]:
    """A micro-batch of pairs, and a weight for each sequence."""
    rng = random.Random(0)
    prompts = [ids(rng, n) for n in (19, 4, 1, 30)]
    batch = batch_of(prompts[:1] if policy.network.sharing is PromptSharing.ONE_PROMPT else prompts, seed=2)
    return batch, np.linspace(-1, 1, len(batch.sequences)).astype(np.float32)


def all_reduce(gradients: Any, group: Group) -> Any:
    """Gradients summed over ranks."""
    if group is None:
        return gradients
    flat = tree_flatten(gradients)
    return tree_unflatten([(name, mx.distributed.all_sum(v, group=group)) for name, v in flat])


def measure(case: Case, group: Group) -> dict[str, np.ndarray]:
    """Log-probs, gradients and trained tensors of a case, on a single rank or on one of several."""
    policy = case.policy(group)
    measured: dict[str, Any] = {f"initial/{name}": v for name, v in policy.initial_tensors.items()}
    measured["fingerprint"], measured["sharing"] = policy.fingerprint, policy.network.sharing.name
    measured["random"] = random_state()
    frozen = {
        name: v for name, v in tree_flatten(policy.model.parameters()) if name not in trainable_tensors(policy.model)
    }
    measured["bytes"] = sum(v.nbytes for v in frozen.values())
    set_random_adapter(policy)
    (batch, weights), network = batch_for(policy), policy.network
    trace = network.trace(batch, round(case.checkpointed * network.num_checkpointable))
    measured["sums"] = trace.logps.sums
    gradient = all_reduce(trace.gradient(weights), group)
    measured |= {f"gradient/{name}": v for name, v in tree_flatten(gradient)}
    with swap_adapter(policy.model, policy.initial_tensors):
        measured["reference"] = network.logps(batch).sums
    optimizer = Adam(learning_rate=1e-3, bias_correction=True, eps=1e-4)
    for _ in range(STEPS):
        optimizer.update(policy.model, all_reduce(network.trace(batch).gradient(weights), group))
        mx.eval(policy.model.trainable_parameters(), optimizer.state)
    measured |= {f"trained/{name}": v for name, v in trainable_tensors(policy.model).items()}
    return {name: np.array(value) for name, value in measured.items()}


def memory(case: Case, group: Group) -> dict[str, np.ndarray]:
    """Bytes of the whole model's blocks, of this rank's, of its other tensors, and at the peak while loading."""
    sizes = [v.nbytes for _, v in tree_flatten(load_model(case.model, lazy=True).model.layers)]
    tensor_parallel.tensor_digest = lambda tensor: str(mx.eval(tensor))  # without the memory of checksums
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    model = load_model(case.model, lazy=True).model
    tensor_parallel.shard_model(model, attach_adapter(model, AdapterSpec("lora", -1)), group)
    peak = mx.get_peak_memory() - before
    trained = trainable_tensors(model)
    frozen = {name: v.nbytes for name, v in tree_flatten(model.parameters()) if name not in trained}
    own = sum(size for name, size in frozen.items() if ".layers." in name)
    rest = sum(frozen.values()) - own + sum(v.nbytes for v in trained.values())
    measured = {"whole": sum(sizes), "own": own, "rest": rest, "largest": max(frozen.values()), "peak": peak}
    return {name: np.array(value) for name, value in measured.items()}


def decisions(case: Case, group: Group) -> dict[str, np.ndarray]:
    """What ranks must agree on although each has different free memory and another cache."""
    policy = case.policy(group)
    usable = mx.get_active_memory() + 3_000_000 + 500_000 * group.rank()
    budget = MemoryModel.for_training(policy.network, usable, None, False)
    batch, _ = batch_for(policy)
    os.environ["XDG_CACHE_HOME"] = str(Path(case.model).parent / f"cache{group.rank()}")
    sums = [
        _reference(policy).sums(batch),
        _reference(policy).cache.get_or_compute(batch, _never),
    ]  # only the first rank has it
    return {
        "bytes": np.array(budget.activation_limit),
        "kept": np.array(budget.activation_memory.bytes_per_token),
        "sums": np.array(sums),
    }


def _reference(policy: Policy) -> CachedReference:
    return CachedReference(policy.network, policy.initial_tensors, "model", policy.fingerprint)


def _never(batch: MicroBatch) -> np.ndarray:
    raise AssertionError("it is in the cache")


def main(folder: Path) -> None:
    """Run all cases; all ranks run the same one at a time."""
    group = mx.distributed.init(backend="ring", strict=True)
    for i, case in enumerate(json.loads((folder / "cases.json").read_text())):
        job = globals()[case.pop("job")]
        try:
            measured = job(Case(**case), group)
        except UserError as error:
            measured = {"error": np.array(str(error))}
        np.savez(folder / f"{i}-{group.rank()}.npz", **measured)


def on_ranks(size: int, folder: Path, cases: list[dict[str, Any]]) -> list[list[dict[str, np.ndarray]]]:
    """The jobs' results, [cases][ranks], on `size` ranks that the models are split over."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    outputs(start_ranks(folder, size, [sys.executable, "-m", "tests.distributed.sharded_worker", str(folder)]))
    return [[dict(np.load(folder / f"{i}-{rank}.npz")) for rank in range(size)] for i in range(len(cases))]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
