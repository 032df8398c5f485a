"""Trainings side by side: a process each, which signals reach and which leave no state behind in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from guardlit.ablation.runs import LOG, Run
from guardlit.devices.cores import available_cores
from guardlit.errors import GuardlitError

PROGRAM = (sys.executable, "-m", "guardlit")
POLL_SECONDS = 0.2
FORWARDED = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,  # the terminal is closed
}
"""Signal to this process: what its trainings receive, since they have checkpoints to write."""


@dataclass
class _Job:
    """A training in progress."""

    run: Run
    process: subprocess.Popen[bytes]
    log: Path | None
    resources: ExitStack
    started: float = field(default_factory=time.monotonic)

    def ended(self) -> tuple[int, float] | None:
        """Exit code and CPU seconds, once the process has exited."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
        self.resources.close()
        return self.process.returncode, usage.ru_utime + usage.ru_stime


class Pool:
    """Trains runs, `jobs` of them at a time.

    With one job the training writes to this process's terminal. With more, each writes to `ablate.log` in its folder,
    and one line of each start and end is printed. A failed run does not stop the others.

    Args:
        jobs: trainings at a time.
        show: prints a line.
    """

    def __init__(self, jobs: int, show: Callable[[str], None]) -> None:
        self.jobs, self.show = jobs, show
        self.failed: dict[Path, str] = {}
        """Why, by the folder of the run."""
        self._running: list[_Job] = []
        self._received: list[int] = []
        self._forwarded = 0  # of those

    def train(self, runs: Sequence[Run]) -> None:
        """Train all that are given.

        Args:
            runs: none of them finished.

        Raises:
            GuardlitError: another process trains one of them; nothing is started.
            SystemExit: with 128 + the signal once a signal has ended them.
        """
        for run in runs:
            if run.folder.is_dir():
                with run.locked():
                    pass
        waiting = list(runs)
        with self._forwarding():
            while self._running or (waiting and not self._received):
                while waiting and len(self._running) < self.jobs and not self._received:
                    self._start(waiting.pop(0))
                self._forward()
                self._collect()
        if self._received:
            raise SystemExit(128 + self._received[0])

    def _start(self, run: Run) -> None:
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(run.locked())
                command = [*PROGRAM, *run.command()]
            except GuardlitError as error:
                self._fail(run, str(error))
                return
            run.record(finished=False)
            log = run.folder / LOG if self.jobs > 1 else None
            output = stack.enter_context(log.open("ab")) if log else None
            # a separate process group: the terminal's Ctrl-C then comes once, from here
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                env=environment(self.jobs, os.environ),
                pass_fds=[lock.fileno()],
                process_group=0,
            )
            self._running.append(_Job(run, process, log, stack.pop_all()))
        self.show(f"{run.folder}: {'resumes' if '--ckpt_path' in command else 'starts'}{f', log {log}' if log else ''}")

    def _collect(self) -> None:
        """Note what has ended, or wait a moment."""
        ended = [(job, end) for job in self._running if (end := job.ended()) is not None]
        if not ended:
            time.sleep(POLL_SECONDS)
        for job, (code, cpu_seconds) in ended:
            self._running.remove(job)
            job.run.record(finished=code == 0, cpu_seconds=cpu_seconds)
            if code == 0:
                self.show(
                    f"{job.run.folder}: finished in {time.monotonic() - job.started:.0f} s, {cpu_seconds:.0f} s CPU"
                )
            elif self._received:
                self.show(f"{job.run.folder}: stopped with exit code {code}")
            else:
                self._fail(job.run, f"exit code {code}{_last_line(job.log)}")

    def _fail(self, run: Run, why: str) -> None:
        self.failed[run.folder] = why
        self.show(f"{run.folder}: failed: {why}")

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in FORWARDED}
        for number, handler in before.items():
            if (number, handler) != (signal.SIGHUP, signal.SIG_IGN):  # as `nohup` sets it
                signal.signal(number, lambda received, _: self._received.append(received))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self) -> None:
        """Send each signal on exactly once: a second SIGINT ends a training without a checkpoint."""
        while self._forwarded < len(self._received):
            number = FORWARDED[signal.Signals(self._received[self._forwarded])]
            self._forwarded += 1
            for job in self._running:
                job.process.send_signal(number)


def environment(jobs: int, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a training next to `jobs - 1` others: the cores are divided among them unless it says how."""
    threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs))} if jobs > 1 else {}
    return {**threads, **given}


def _last_line(log: Path | None) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last}" if last else ""
