"""Commands disturbed at random moments, resumed, and compared with undisturbed ones; see `soak.py --chaos`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from chaos_faults import FAULTS, ChaosFault, FullDisk, mount_small_disk
from chaos_jobs import JOBS, ChaosJob, TrainJob, Workplace
from processes import machine, print_status, versions

MAX_FAULTS = 3  # of a round, before the command may finish
MAX_FINISHING_ATTEMPTS = 3
TIMEOUT = 180.0  # seconds that a command may take


@dataclass
class ChaosReport:
    """What was done, and what went wrong.

    Attributes:
        commands: number of commands run.
        faults: how often each fault struck a running command, by "command: fault".
        exits: how often commands ended with each exit code, by "fault: code".
        failures: sentences, with what the command printed.
        sizes: rounds done, by command.
    """

    commands: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "commands": self.commands,
            "rounds": dict(sorted(self.rounds.items())),
            "faults": dict(sorted(self.faults.items())),
            "exits": dict(sorted(self.exits.items())),
            "failures": self.failures,
        }


@dataclass(frozen=True)
class CommandEnd:
    """How a command ended."""

    code: int
    out: str
    err: str
    was_struck: bool


class ChaosRunner:
    """Runs rounds: a command with faults, then without, and a comparison.

    What a run has recorded of earlier evaluations is not compared where its folder was deleted, or where the command
    has reported that it could not be written.
    """

    def __init__(self, place: Workplace, faults: tuple[type[ChaosFault], ...], report: ChaosReport) -> None:
        self.place, self.faults, self.report = place, faults, report
        self._has_lost_history = False
        self.expected: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Run every command once, undisturbed; the adapter is that of `train`, and the cache is filled."""
        for kind in JOBS:
            for _ in range(2):  # the second time with a cache, as in the rounds
                job = self._undisturbed(kind)
            if isinstance(job, TrainJob):
                self.place.keep("adapter", job.run)
            print_status(f"{kind.name}: {self.seconds[kind.name]:.1f} s undisturbed")

    def _undisturbed(self, kind: type[ChaosJob]) -> ChaosJob:
        self.place.reset()
        job, began = kind(self.place), time.monotonic()
        end = self._run(job)
        if end.code != 0:
            raise SystemExit(f"{kind.name} failed undisturbed, with {end.code}:\n{end.err}")
        self.expected[kind.name], self.seconds[kind.name] = job.result(end.out), time.monotonic() - began
        self.place.keep("cache", self.place.cache)
        return job

    def round(self, seed: str) -> None:
        """Disturb a command a few times, let it finish, and compare what it leaves."""
        rng = Random(seed)
        self.place.reset()
        job = rng.choice((TrainJob, TrainJob, *JOBS))(self.place)  # with the most to lose
        if isinstance(job, TrainJob):
            job.supervised = rng.random() < 0.5
        self.report.rounds[job.name] += 1
        self._has_lost_history = False
        faults = [rng.choice(self.faults)() for _ in range(rng.randint(1, MAX_FAULTS))]
        label = f"round {seed}, {job.name}{'' if getattr(job, 'supervised', True) else ' --no-supervise'}"
        print_status(f"{label}: {', '.join(fault.name for fault in faults)}")
        for fault in faults:
            if self._disturbed(job, fault, rng, label):
                return self._compare(job, "", label)
        for _ in range(MAX_FINISHING_ATTEMPTS):
            end = self._run(job)
            self._check_output(end, label)
            if job.is_done(end.code, end.err):
                return self._compare(job, end.out, label)
        return self._fail(label, f"it does not finish: exit code {end.code}", end)

    def _disturbed(self, job: ChaosJob, fault: ChaosFault, rng: Random, label: str) -> bool:
        """Run the command with one fault. Returns whether it reported to have finished before."""
        fault.before(self.place, rng)
        end = self._run(job, fault, rng)
        saved = self._saved
        fault.after(self.place)
        job.wait_for_orphans()
        self.report.exits[f"{fault.name}: {end.code}"] += 1
        self._check_output(end, label)
        self._has_lost_history |= fault.loses_output
        if end.was_struck:
            self.report.faults[f"{job.name}: {fault.name}"] += 1
        if end.code != 0 and end.code not in fault.exit_codes and not job.is_done(end.code, end.err):
            self._fail(label, f"{fault.name}: exit code {end.code}", end)
        if not fault.loses_output and not job.is_kept(saved, job.acknowledged()):
            self._fail(label, f"{fault.name}: something that was saved is lost", end)
        if end.code == 0 and not fault.loses_output:
            self._compare(job, end.out, f"{label}, {fault.name}")
        self.place.output.mkdir(parents=True, exist_ok=True)
        return end.code == 2 and job.is_done(end.code, end.err) and not fault.loses_output

    def _run(self, job: ChaosJob, fault: ChaosFault | None = None, rng: Random | None = None) -> CommandEnd:
        command = [sys.executable, "-m", "mlx_dpo", *map(str, job.arguments)]
        self.report.commands += 1
        was_struck = False
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, env=self.place.environment(), start_new_session=True
            )
            if fault is not None and rng is not None:
                try:
                    process.wait(rng.random() * self.seconds[job.name])
                except subprocess.TimeoutExpired:
                    was_struck = True
                    self._saved = job.acknowledged()
                    fault.strike(process, job, rng)
            if not was_struck:
                self._saved = job.acknowledged()
            try:
                code = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
                self.report.failures.append(f"{job.name}: it did not end within {TIMEOUT:.0f} s")
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
        return CommandEnd(code, *texts, was_struck)

    def _check_output(self, end: CommandEnd, label: str) -> None:
        self._has_lost_history |= "report can't be written" in end.err
        for sign in ("Traceback (most recent call last)", "Exception ignored in"):
            if sign in end.out + end.err:
                self._fail(label, f"{sign!r} in its output", end)

    def _compare(self, job: ChaosJob, stdout: str, label: str) -> None:
        expected = self.expected[job.name]
        try:
            result = job.result(stdout)
        except OSError as error:
            return self._fail(label, f"finished, but its output can't be read: {error}")
        if not stdout and job.name == "evaluate":
            return None
        differing = [name for name in {*expected, *result} if expected.get(name) != result.get(name)]
        if self._has_lost_history:
            differing = [name for name in differing if not name.startswith(("report/", "evaluations"))]
        if differing:
            self._fail(label, f"differs from the undisturbed one: {', '.join(sorted(differing))}")
        return None

    def _fail(self, label: str, message: str, end: CommandEnd | None = None) -> None:
        text = f"{label}: {message}"
        if end is not None:
            text += f"\n{end.out[-1000:]}\n{end.err[-4000:]}"
        self.report.failures.append(text)
        print_status(f"FAILED {text}")


def run_chaos(minutes: float, seed: int, only_round: int | None = None) -> dict[str, Any]:
    """Run rounds until the time is over; the first ones of a seed are the same each time.

    Args:
        minutes: for which rounds are begun.
        seed: of jobs, faults and moments.
        only_round: run this round alone.

    Returns:
        Counts and failures, with the machine, as plain values.
    """
    report, made = ChaosReport(), {"machine": machine(), "versions": versions("mlx", "mlx-lm", "mlx-dpo")}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder))
        has_disk = mount_small_disk(place.disk)
        faults = tuple(fault for fault in FAULTS if has_disk or fault is not FullDisk)
        if not has_disk:
            print_status("Only root can mount a small file system: no full disks.")
        try:
            runner = ChaosRunner(place, faults, report)
            runner.prepare()
            number, began_rounds = only_round or 0, time.monotonic()
            while time.monotonic() < began_rounds + 60 * minutes:
                runner.round(f"{seed}-{number}")
                if only_round is not None:
                    break
                number += 1
        finally:
            place.hub.close()
            if has_disk:
                subprocess.run(["umount", "-l", str(place.disk)], check=False)
    minutes = round((time.monotonic() - began) / 60, 1)
    return {"seed": seed, "minutes": minutes, **report.to_json(), **made}
