"""What a rank does in these tests: `python -m tests.distributed.worker JOB FOLDER ARGUMENTS` prints the result."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo import TrainConfig, UserError, train
from mlx_dpo.adapters.adapter_folder import set_tensors
from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.data import example_sources as sources
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.distributed.rank_environment import launcher_rank
from mlx_dpo.errors import Interrupted, RankLost, Where
from mlx_dpo.evaluation.loss_setup import loss_from_config, resolve_loss_settings
from mlx_dpo.reference.reference_policy import CachedReference
from mlx_dpo.training.components import TrainComponents, TrainInputs, build_components
from mlx_dpo.training.listener import Listener, Metrics
from mlx_dpo.training.run_folder import RunFolder


class Watch(Listener):
    """Keeps what a run tells, and asks it to stop after a step."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop_after, self.stop = stop_after, threading.Event()
        self.losses: list[float] = []
        self.evaluations: list[Metrics] = []
        self.reports: list[Metrics] = []
        self.on_the_wire: list[int] = []

    def on_step(self, step: int, metrics: Metrics) -> None:
        self.losses.append(metrics["loss"])
        self.on_the_wire.append(bytes_on_the_wire())
        if step == self.stop_after:
            self.stop.set()

    def on_metrics(self, metrics: Metrics) -> None:
        self.reports.append(metrics)

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        self.evaluations.append(metrics)


def bytes_on_the_wire() -> int:
    """What the system has sent for this process by TCP so far (Linux; elsewhere 0)."""
    if not sys.platform.startswith("linux"):
        return 0
    total = 0
    for file in Path("/proc/self/fd").iterdir():
        try:
            if not str(file.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as one:
                if one.family == socket.AF_INET and one.type == socket.SOCK_STREAM:
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
                    sent, again = struct.unpack_from("<QQ", info, 200)  # tcpi_bytes_sent, tcpi_bytes_retrans
                    total += sent - again
        except OSError:
            continue
    return total


def trained(folder: Path, name: str, knobs: dict[str, Any], resume: bool = False, stop_after: int = 0) -> Any:
    """One run; what its listener heard."""
    watch = Watch(stop_after)
    config = TrainConfig.from_mapping({**knobs, "adapter_path": str(folder / name)})
    try:
        train(config, listener=watch, resume=resume, stop=watch.stop)
        ended = "done"
    except Interrupted as interruption:
        ended = f"interrupted at {interruption.step}"
    except UserError as error:
        ended = f"refused: {error}"
    told = {name: getattr(watch, name) for name in ("losses", "evaluations", "reports", "on_the_wire")}
    return {"ended": ended, **told}


def runs(folder: Path, runs: dict[str, dict[str, Any]]) -> Any:
    """Some runs, one after the other."""
    return {name: trained(folder, name, knobs) for name, knobs in runs.items()}


def steps(folder: Path, runs: dict[str, dict[str, Any]]) -> Any:
    """The first steps of some runs, with as little else as can be: what runs have in common is set up once."""
    ready: dict[str, TrainComponents] = {}
    told = {}
    group = Communicator.join()
    for name, knobs in runs.items():
        config = TrainConfig.from_mapping({**knobs, "adapter_path": str(folder / name)})
        loss = loss_from_config(config)
        key = json.dumps([knobs.get(each) for each in ("data", "fine_tune_type", "reference", "reference_sync_steps")])
        if key in ready:
            ready[key].train_set.reference.clear()
        else:
            ready[key] = build_components(TrainInputs(config, None, None, None, None, Listener()), None, group)
        found, watch = replace(ready[key], config=resolve_loss_settings(config, loss), loss=loss), Watch()
        start = dict(trainable_tensors(found.policy.model))
        trainer = found.make_trainer(RunFolder(folder / name), watch)
        for step in range(config.iters or 0):
            trainer.step(trainer.scorer.make_batch(trainer.source.batch(step), group))
        if group.is_main:
            trainer.saver.folder.save_adapter(trainable_tensors(found.policy.model), found.policy.spec, config.model)
        set_tensors(found.policy.model, start, Where(name))
        if moving := trainer.scorer.moving_reference:
            moving.tensors = start if config.reference == "initial" else found.policy.base_tensors
        told[name] = watch.losses
    return told


def counted(folder: Path, knobs: dict[str, Any]) -> Any:
    """How many sequences the reference was asked for here, how many lines were parsed, and which examples encoded."""
    sequences, parsed, encoded = 0, 0, list[int]()
    sums, encode, parse = CachedReference.sums, EncodedExamples.encode, sources.parse_json_line

    def counting_parse(line: bytes, where: Where) -> Any:
        nonlocal parsed
        parsed += 1
        return parse(line, where)

    def counting_sums(self: CachedReference, batch: Any) -> np.ndarray:
        nonlocal sequences
        sequences += len(batch.sequences)
        return sums(self, batch)

    def counting_encode(self: EncodedExamples, index: int) -> Any:
        encoded.append(index)
        return encode(self, index)

    CachedReference.sums, EncodedExamples.encode = counting_sums, counting_encode  # type: ignore[method-assign]
    sources.parse_json_line = counting_parse
    trained(folder, "run", knobs)
    return {"sequences": sequences, "parsed": parsed, "encoded": encoded}


def other_rows(folder: Path, knobs: dict[str, Any]) -> Any:
    """Rank 1 has another file of that name."""
    own = folder / str(launcher_rank()) / "rows.jsonl"
    own.parent.mkdir(parents=True)
    lines = Path(knobs["data"]).read_text().splitlines(keepends=True)
    own.write_text("".join(lines[::-1] if launcher_rank() == 1 else lines))
    return trained(folder, "run", {**knobs, "data": str(own)})["ended"]


def mails(folder: Path) -> Any:
    """Everything that a group is for."""
    group = Communicator.join()
    mine = group.rank
    whole, own = group.gather_and_concatenate({"a": np.full((mine, 2), mine, np.float64), "b": np.arange(mine) > 0})
    tree = {"x": mx.full((3, 2), mine + 1.0), "y": [mx.ones(4, mx.bfloat16), mx.arange(5).astype(mx.float32)]}
    before = group.bytes_sent
    summed = group.all_sum(tree)
    sent = group.bytes_sent - before
    return {
        "pooled": [whole["a"].tolist(), whole["b"].tolist(), own.start, own.stop],
        "first": group.broadcast(f"from {mine}".encode()).decode(),
        "any": [any(group.all_gather_json(mine == 1)), any(group.all_gather_json(False))],
        "x": summed["x"].tolist(),
        "y": [[str(one.dtype), one.tolist()] for one in summed["y"]],
        "sent": sent,
        "share": group.local_items(list(range(7))),
        "turns": [batch.tolist() for batch in group.round_robin([np.array([i]) for i in range(5)])],
    }


def one_fate(folder: Path, what: str) -> Any:
    """Rank 1 ends in some way, while the others wait for its mail."""
    group = Communicator.join()
    try:
        with group.fail_together():
            if group.rank == 1 and what == "refused":
                raise UserError("that is wrong", where=Where("rows.jsonl", 3), field="prompt", hint="Do this.")
            if group.rank == 1 and what == "killed":
                print(json.dumps("gone"), flush=True)
                os._exit(0)
            if what == "stopped":
                raise Interrupted(3, "somewhere")
            group.all_gather({"a": np.zeros(3)})
    except (UserError, RankLost, Interrupted) as error:
        return [type(error).__name__, str(error)]
    return "done"


if __name__ == "__main__":
    job, given_folder, arguments = sys.argv[1:]
    print(json.dumps(globals()[job](Path(given_folder), **json.loads(arguments))))
