"""A rank's part of a test: `python -m tests.distributed.worker JOB FOLDER ARGUMENTS` prints what the job returns."""

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
from mlx_dpo.data import row_reading
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.distributed.rank_environment import launcher_rank
from mlx_dpo.errors import Interrupted, RankLost, Where
from mlx_dpo.evaluation.loss_setup import loss_from_config, resolve_loss_settings
from mlx_dpo.reference.reference_policy import CachedReference
from mlx_dpo.training.components import TrainComponents, TrainInputs, build_components
from mlx_dpo.training.listener import Listener, Metrics
from mlx_dpo.training.run_folder import RunFolder


class EventRecorder(Listener):
    """Records a run's events, and asks it to stop after a step."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop_after, self.stop = stop_after, threading.Event()
        self.losses: list[float] = []
        self.evaluations: list[Metrics] = []
        self.reports: list[Metrics] = []
        self.tcp_bytes: list[int] = []

    def on_step(self, step: int, metrics: Metrics) -> None:
        self.losses.append(metrics["loss"])
        self.tcp_bytes.append(tcp_bytes_sent())
        if step == self.stop_after:
            self.stop.set()

    def on_metrics(self, metrics: Metrics) -> None:
        self.reports.append(metrics)

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        self.evaluations.append(metrics)


def tcp_bytes_sent() -> int:
    """Bytes that this process has sent over TCP so far (on Linux; elsewhere 0)."""
    if not sys.platform.startswith("linux"):
        return 0
    total = 0
    for file in Path("/proc/self/fd").iterdir():
        try:
            if not str(file.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as connection:
                if connection.family == socket.AF_INET and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
                    sent, retransmitted = struct.unpack_from("<QQ", info, 200)  # tcpi_bytes_sent, tcpi_bytes_retrans
                    total += sent - retransmitted
        except OSError:
            continue
    return total


def run_training(folder: Path, name: str, settings: dict[str, Any], resume: bool = False, stop_after: int = 0) -> Any:
    """Train once. Returns how it ended and the recorded events."""
    recorder = EventRecorder(stop_after)
    config = TrainConfig.from_mapping({**settings, "adapter_path": str(folder / name)})
    try:
        train(config, listener=recorder, resume=resume, stop=recorder.stop)
        ended = "done"
    except Interrupted as interruption:
        ended = f"interrupted at {interruption.step}"
    except UserError as error:
        ended = f"refused: {error}"
    events = {name: getattr(recorder, name) for name in ("losses", "evaluations", "reports", "tcp_bytes")}
    return {"ended": ended, **events}


def run_several(folder: Path, runs: dict[str, dict[str, Any]]) -> Any:
    """Several runs, one after the other."""
    return {name: run_training(folder, name, settings) for name, settings in runs.items()}


def first_steps(folder: Path, runs: dict[str, dict[str, Any]]) -> Any:
    """The losses of the first steps of several runs, which share their components where they can."""
    prepared: dict[str, TrainComponents] = {}
    losses_by_run = {}
    communicator = Communicator.join()
    for name, settings in runs.items():
        config = TrainConfig.from_mapping({**settings, "adapter_path": str(folder / name)})
        loss = loss_from_config(config)
        shared = ("data", "fine_tune_type", "reference", "reference_sync_steps")
        key = json.dumps([loss.needs_reward_head, *(settings.get(name) for name in shared)])
        if key in prepared:
            prepared[key].train_set.reference.clear()
        else:
            inputs = TrainInputs(config, None, None, None, None, Listener())
            prepared[key] = build_components(inputs, None, communicator)
        components = replace(prepared[key], config=resolve_loss_settings(config, loss), loss=loss)
        recorder = EventRecorder()
        policy = components.policy
        start = dict(trainable_tensors(policy.model))
        trainer = components.make_trainer(RunFolder(folder / name), recorder)
        for step in range(config.iters or 0):
            trainer.step(trainer.scorer.make_batch(trainer.source.batch(step), communicator))
        if communicator.is_main:
            trainer.saver.folder.save_adapter(trainable_tensors(policy.model), policy.spec, config.model)
        set_tensors(policy.model, start, Where(name))
        if moving := trainer.scorer.moving_reference:
            moving.tensors = start if config.reference == "initial" else policy.base_tensors
        losses_by_run[name] = recorder.losses
    return losses_by_run


def count_work(folder: Path, settings: dict[str, Any]) -> Any:
    """How many sequences the reference computed, how many lines were parsed, and which examples were encoded here."""
    sequences, parsed, encoded = 0, 0, list[int]()
    sums, encode, parse = CachedReference.sums, EncodedExamples.encode, row_reading.parse_json_line

    def counting_parse(line: bytes, where: Where) -> Any:
        nonlocal parsed
        parsed += 1
        return parse(line, where)

    def counting_sums(self: CachedReference, batch: Any, policy_sums: np.ndarray | None = None) -> np.ndarray:
        nonlocal sequences
        sequences += len(batch.sequences)
        return sums(self, batch, policy_sums)

    def counting_encode(self: EncodedExamples, index: int) -> Any:
        encoded.append(index)
        return encode(self, index)

    CachedReference.sums, EncodedExamples.encode = counting_sums, counting_encode  # type: ignore[method-assign]
    row_reading.parse_json_line = counting_parse
    run_training(folder, "run", settings)
    return {"sequences": sequences, "parsed": parsed, "encoded": encoded}


def train_on_other_rows(folder: Path, settings: dict[str, Any]) -> Any:
    """Train where rank 1 has another file of the same name."""
    own = folder / str(launcher_rank()) / "rows.jsonl"
    own.parent.mkdir(parents=True)
    lines = Path(settings["data"]).read_text().splitlines(keepends=True)
    own.write_text("".join(lines[::-1] if launcher_rank() == 1 else lines))
    return run_training(folder, "run", {**settings, "data": str(own)})["ended"]


def collectives(folder: Path) -> Any:
    """One of each collective operation."""
    communicator = Communicator.join()
    rank = communicator.rank
    whole, own = communicator.gather_and_concatenate(
        {"a": np.full((rank, 2), rank, np.float64), "b": np.arange(rank) > 0}
    )
    tree = {"x": mx.full((3, 2), rank + 1.0), "y": [mx.ones(4, mx.bfloat16), mx.arange(5).astype(mx.float32)]}
    before = communicator.bytes_sent
    summed = communicator.all_sum(tree)
    sent = communicator.bytes_sent - before
    return {
        "concatenated": [whole["a"].tolist(), whole["b"].tolist(), own.start, own.stop],
        "broadcast": communicator.broadcast(f"from {rank}".encode()).decode(),
        "any": [any(communicator.all_gather_json(rank == 1)), any(communicator.all_gather_json(False))],
        "x": summed["x"].tolist(),
        "y": [[str(array.dtype), array.tolist()] for array in summed["y"]],
        "bytes_sent": sent,
        "local_items": communicator.local_items(list(range(7))),
        "round_robin": [batch.tolist() for batch in communicator.round_robin([np.array([i]) for i in range(5)])],
    }


def fail_together(folder: Path, ending: str) -> Any:
    """Rank 1 ends in some way while the others wait for its arrays."""
    communicator = Communicator.join()
    try:
        with communicator.fail_together():
            if communicator.rank == 1 and ending == "refused":
                raise UserError("that is wrong", where=Where("rows.jsonl", 3), field="prompt", hint="Do this.")
            if communicator.rank == 1 and ending == "killed":
                print(json.dumps("gone"), flush=True)
                os._exit(0)
            if ending == "stopped":
                raise Interrupted(3, "somewhere")
            communicator.all_gather({"a": np.zeros(3)})
    except (UserError, RankLost, Interrupted) as error:
        return [type(error).__name__, str(error)]
    return "done"


if __name__ == "__main__":
    job, folder, arguments = sys.argv[1:]
    print(json.dumps(globals()[job](Path(folder), **json.loads(arguments))))
