"""Watches a folder that a program keeps backups in, and says what was put there."""

import os
import time
from dataclasses import dataclass

from .process import Failed


@dataclass
class Put:
    """Bytes and number of the objects that are new or were written again."""

    bytes: int = 0
    objects: int = 0

    def __add__(self, other: "Put") -> "Put":
        return Put(self.bytes + other.bytes, self.objects + other.objects)


class Store:
    """What is in the folder is looked at by name, size, time and inode; contents are not read."""

    def __init__(self, folder):
        self.folder = folder
        self.before = self.now = listing(folder)
        self.seen = {}
        self.changed_at = time.monotonic()

    def mark(self):
        """From here on, everything counts that is put."""
        self.before = self.now = listing(self.folder)
        self.seen = {}

    def look(self):
        """Notes what changed since the last look; also what is deleted again before the next one counts then."""
        now = listing(self.folder)
        if now != self.now:
            self.changed_at = time.monotonic()
        for path, state in now.items():
            if self.before.get(path) != state:
                self.seen[path] = state
        self.now = now
        return self.seen

    def put(self):
        """What was put since the mark. A temporary name that became another counts once."""
        self.look()
        final = {state[2] for path, state in self.seen.items() if path in self.now}
        counted = [state for path, state in self.seen.items() if path in self.now or state[2] not in final]
        return Put(sum(state[0] for state in counted), len(counted))

    def size(self):
        """All that is there."""
        self.now = listing(self.folder)
        return Put(sum(state[0] for state in self.now.values()), len(self.now))

    def settle(self, quiet, alive, patience=120.0, something=True):
        """Waits until something was put since the mark, and nothing more for `quiet` seconds."""
        began = time.monotonic()
        self.changed_at = began
        while True:
            alive()
            self.look()
            now = time.monotonic()
            if (self.seen or not something) and now - self.changed_at >= quiet:
                return
            if now - began > patience:
                raise Failed(f"nothing was put within {patience:.0f} s")
            time.sleep(0.03)


def listing(folder):
    """Path of every file below `folder`: size, time of change, inode."""
    found = {}
    stack = [folder]
    while stack:
        try:
            entries = list(os.scandir(stack.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    found[entry.path] = (status.st_size, status.st_mtime_ns, status.st_ino)
            except FileNotFoundError:
                continue
    return found
