"""Peers that run beside the app: Chatkeep and Litestream. The app has the database open all the time."""

import os
import re
import time
from pathlib import Path

from harness.chatkeep import Chatkeep
from harness.process import Cost, Daemon, run


class Ours:
    """Chatkeep, every setting at its default, encrypted with 64 digits."""

    live = True
    encrypted = True
    # it ships after 2 s of silence: so long after the last object nothing follows
    quiet = 4.0
    first_quiet = 4.0

    def __init__(self, programs, root, source):
        self.source = Path(source)
        self.store = Path(root) / "store"
        self.service = Chatkeep(programs, Path(root) / "m", self.store)

    def first(self, _store):
        """Starts the service and waits for the first backup."""
        began = time.monotonic()
        self.service.start()
        started = self.daemon.cpu()
        cost = self.service.metered(lambda: self.service.protect(self.source))
        return Cost(started + cost.cpu, time.monotonic() - began, cost.peak)

    @property
    def daemon(self):
        """The service's process."""
        return self.service.daemon

    def restore(self, to):
        """On a new machine, with the digits."""
        return self.service.restore_elsewhere(Path(to) / self.source.name)

    def stop(self):
        """Ends the service."""
        self.service.stop()


class OursAttachments(Ours):
    """The same with a folder of attachments, and next to nothing in the database."""

    def __init__(self, bench, programs, root, folder):
        super().__init__(programs, root, folder)
        self.bench = bench

    def first(self):
        """Starts the service and waits until all attachments are in the backup."""
        database = self.bench.database(self.service.root / "home", 10, 1)
        began = time.monotonic()
        self.service.start()
        started = self.daemon.cpu()
        cost = self.service.metered(lambda: self.service.protect(database, self.source))
        return Cost(started + cost.cpu, time.monotonic() - began, cost.peak)

    def backup(self):
        """Asks for one, of folders that have not changed."""
        return self.service.metered(lambda: self.service.command("backup", "chat", "--wait")[0])


class Litestream:
    """Litestream left to its timer: forced syncs of 0.5 were seen to give backups that do not restore."""

    live = True
    quiet = 4.0

    def __init__(self, need, root, source):
        self.program = need.found["litestream"]
        self.root = Path(root)
        self.source = Path(source)
        self.store = self.root / "store"
        self.log = self.root / "log"
        self.root.mkdir(parents=True)
        self.env = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.root)}
        self.keygen = need.found.get("age-keygen")
        # 0.3 has age, 0.5 refuses it
        self.encrypted = self.keygen is not None
        # 0.5 puts the whole database again half a minute after the first time
        self.first_quiet = 4.0 if self.encrypted else 40.0
        self.config = self.root / "litestream.yml"
        self.config.write_text(self.settings())
        self.daemon = None

    def settings(self):
        """Everything else at its default."""
        if not self.encrypted:
            return f"dbs:\n  - path: {self.source}\n    replica:\n      type: file\n      path: {self.store}\n"
        key = run([self.keygen], self.env)[1]
        secret = re.search(r"^AGE-SECRET-KEY-\S+", key, re.M).group()
        public = re.search(r"public key: (\S+)", key).group(1)
        return (
            f"dbs:\n  - path: {self.source}\n    replicas:\n      - type: file\n        path: {self.store}\n"
            f"        age:\n          identities: [{secret}]\n          recipients: [{public}]\n"
        )

    def first(self, store):
        """Starts it and waits until it puts nothing more. The wall time ends with the last object."""
        began = time.monotonic()
        self.daemon = Daemon([self.program, "replicate", "-config", self.config], self.env, self.log)
        store.settle(self.first_quiet, self.daemon.alive, patience=600)
        wall = store.changed_at - began
        return Cost(self.daemon.cpu(), wall, self.daemon.memory())

    def restore(self, to):
        """Stops it, and restores."""
        self.stop()
        target = Path(to) / self.source.name
        return run([self.program, "restore", "-config", self.config, "-o", target, self.source], self.env, log=self.log)[0]

    def stop(self):
        """Ends it."""
        if self.daemon:
            self.daemon.stop()
