"""Runs programs and meters them: CPU seconds, wall seconds, peak memory, wake-ups."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


class Failed(Exception):
    """A program did not do what it was told; the message ends with what it said."""


@dataclass
class Cost:
    """What something cost. Memory is the largest single process, in bytes."""

    cpu: float = 0.0
    wall: float = 0.0
    peak: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.cpu + other.cpu, self.wall + other.wall, max(self.peak, other.peak))


def run(command, env=None, cwd=None, stdin=None, log=None, ok=(0,)):
    """Runs a program to its end; returns its cost, all that it started included, and its standard output.

    The peak has a floor, the memory of this interpreter (about 15 MiB): the kernel hands it down at fork.
    """
    started = time.monotonic()
    with open(log, "ab") if log else tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [str(part) for part in command], env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=errors,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        )
        if stdin is not None:
            child.stdin.write(stdin.encode())
            child.stdin.close()
        output = child.stdout.read()
        child.stdout.close()
        _, status, usage = os.wait4(child.pid, 0)
        if not log:
            errors.seek(0)
            complaint = errors.read().decode(errors="replace")
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    if child.returncode not in ok:
        said = output.decode(errors="replace")[-500:] + (tail(log) if log else complaint[-1500:])
        raise Failed(f"{Path(command[0]).name} ended with {child.returncode}: {said}")
    cost = Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024)
    return cost, output.decode(errors="replace")


class Daemon:
    """A program that runs beside us."""

    def __init__(self, command, env=None, log=None):
        self.log = log
        with open(log or os.devnull, "ab") as errors:
            self.child = subprocess.Popen(
                [str(part) for part in command], env=env, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        self.pid = self.child.pid

    def alive(self):
        """Raises `Failed` if it ended."""
        if self.child.poll() is not None:
            raise Failed(f"{self.child.args[0]} ended with {self.child.returncode}: {tail(self.log)}")

    def cpu(self):
        """CPU seconds of it and all that it started so far."""
        self.alive()
        stat = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        reaped = (int(stat[13]) + int(stat[14])) / os.sysconf("SC_CLK_TCK")
        return process_clock(self.pid) + reaped + sum(map(process_clock, descendants(self.pid)))

    def wakeups(self):
        """For each of its threads, how often it began to run after it had waited. A thread that ended is gone."""
        counts = {}
        for status in Path(f"/proc/{self.pid}/task").glob("*/status"):
            try:
                lines = status.read_text().splitlines()
            except OSError:
                continue  # it ended just now
            counts[status.parent.name] = sum(
                int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches")
            )
        return counts

    def forget_peak(self):
        """Starts the peak anew, where the kernel lets us (a process that is not dumpable needs root)."""
        try:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        except OSError:
            pass

    def memory(self, name="VmHWM"):
        """Its peak, or with `VmRSS` what it has now, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self):
        """Ends it with SIGTERM, after 10 seconds with SIGKILL."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


def process_clock(pid):
    """CPU seconds of a process: the kernel's clock of it counts nanoseconds, /proc only hundredths of a second."""
    return time.clock_gettime((~pid << 3) | 2)


def end_cleanly():
    """Makes SIGTERM an ordinary end, so that every daemon is stopped and every folder removed."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def descendants(pid):
    """All processes below `pid` that run."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in thread.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def tail(log, lines=12):
    """The last lines of a log."""
    try:
        return "\n".join(Path(log).read_text(errors="replace").splitlines()[-lines:])
    except (OSError, TypeError):
        return ""
