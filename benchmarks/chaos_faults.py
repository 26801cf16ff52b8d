"""What `soak.py --chaos` does to a running command: signals, a full disk, folders that vanish, damaged caches."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from chaos_jobs import ChaosJob, Workplace

DISK_SIZE = 24 << 20  # bytes of the file system that is filled
NO_SPACE_SECONDS = 1.5  # for which a full disk stays so, at most, where it is freed while the command runs
SECOND_SIGNAL_SECONDS = 0.3


class ChaosFault:
    """Something that goes wrong once while a command runs.

    Attributes:
        name: for the counts.
        exit_codes: with which the command may end, beside 0.
        loses_output: whether what the command had saved may be gone.
    """

    name: str
    exit_codes: tuple[int, ...] = (1, 2)
    loses_output = False

    def before(self, place: Workplace, rng: Random) -> None:
        """Damage what the command will find."""

    def strike(self, process: subprocess.Popen[bytes], job: ChaosJob, rng: Random) -> None:
        """Disturb the running command."""

    def after(self, place: Workplace) -> None:
        """Put right what the command can't, as a user would."""


class Kill(ChaosFault):
    """SIGKILL, or a crash of the training process under its supervisor."""

    name, exit_codes = "killed", (-signal.SIGKILL,)

    def strike(self, process: subprocess.Popen[bytes], job: ChaosJob, rng: Random) -> None:
        with suppress(ProcessLookupError):
            os.kill(*job.target_process(process.pid, rng))


class Interrupt(ChaosFault):
    """Ctrl-C. Before Python handles signals, and once it has stopped to, the system ends the process, with -2."""

    name, exit_codes, signals = "SIGINT", (130, -signal.SIGINT), (signal.SIGINT,)

    def strike(self, process: subprocess.Popen[bytes], job: ChaosJob, rng: Random) -> None:
        for i, number in enumerate(self.signals):
            time.sleep(rng.random() * SECOND_SIGNAL_SECONDS if i else 0)
            process.send_signal(number)


class Terminate(Interrupt):
    """SIGTERM."""

    name, exit_codes, signals = "SIGTERM", (143, -signal.SIGTERM), (signal.SIGTERM,)


class InterruptTwice(Interrupt):
    """Ctrl-C by an impatient user."""

    name, signals = "SIGINT twice", (signal.SIGINT, signal.SIGINT)


class FullDisk(ChaosFault):
    """The disk of output and cache fills up, for a while or until the command has ended."""

    name = "full disk"

    def strike(self, process: subprocess.Popen[bytes], job: ChaosJob, rng: Random) -> None:
        ballast = self._ballast(job.place)
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        with suppress(OSError):
            os.truncate(ballast, max(0, ballast.stat().st_size - rng.choice((0, 1 << 12, 1 << 15, 1 << 18))))
        if rng.random() < 0.5:
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.random() * NO_SPACE_SECONDS)
            self.after(job.place)

    def after(self, place: Workplace) -> None:
        self._ballast(place).unlink(missing_ok=True)

    def _ballast(self, place: Workplace) -> Path:
        return place.disk / "ballast"


class VanishedFolder(ChaosFault):
    """A folder is renamed while the command runs, and is back when it has ended."""

    def folder(self, place: Workplace) -> Path:
        raise NotImplementedError

    def strike(self, process: subprocess.Popen[bytes], job: ChaosJob, rng: Random) -> None:
        folder = self.folder(job.place)
        folder.rename(folder.with_name(f"{folder.name}-elsewhere"))

    def after(self, place: Workplace) -> None:
        folder = self.folder(place)
        away = folder.with_name(f"{folder.name}-elsewhere")
        if away.exists():
            shutil.rmtree(folder, ignore_errors=True)
            away.rename(folder)


class VanishedModel(VanishedFolder):
    """The model's folder."""

    name = "model vanished"

    def folder(self, place: Workplace) -> Path:
        return place.model


class VanishedData(VanishedFolder):
    """The folder of the pairs."""

    name = "data vanished"

    def folder(self, place: Workplace) -> Path:
        return place.data


class DeletedOutput(ChaosFault):
    """The folder above the output is deleted while the command runs."""

    name, loses_output = "output deleted", True

    def strike(self, process: subprocess.Popen[bytes], job: ChaosJob, rng: Random) -> None:
        shutil.rmtree(job.place.output.parent, ignore_errors=True)


class DamagedCache(ChaosFault):
    """Files of the cache are cut short or have bits flipped before the command begins."""

    name, exit_codes = "cache damaged", ()

    def before(self, place: Workplace, rng: Random) -> None:
        for file in sorted(path for path in place.cache.rglob("*") if path.is_file()):
            content = bytearray(file.read_bytes())
            match rng.choice(("flip", "truncate", "append", "empty", "leave")) if content else "leave":
                case "flip":
                    for _ in range(rng.randint(1, 20)):
                        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                case "truncate":
                    del content[rng.randrange(len(content)) :]
                case "append":
                    content += rng.randbytes(rng.randint(1, 100))
                case "empty":
                    content.clear()
            file.write_bytes(content)


FAULTS: tuple[type[ChaosFault], ...] = (
    *(Kill, Interrupt, Terminate, InterruptTwice, FullDisk, VanishedModel, VanishedData, DeletedOutput, DamagedCache),
)


def mount_small_disk(folder: Path) -> bool:
    """Mount a small file system, which takes root's rights; without them nothing is filled. Returns whether it is."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
