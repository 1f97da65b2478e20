"""Peers that are run for every backup: each reads the database file, which no app has open meanwhile."""

import os
from pathlib import Path

from harness.process import run

SECRET = "a password that is not one"


class Batch:
    """One program, one repository, one file or folder to back up."""

    live = False
    encrypted = True

    def __init__(self, need, root, source):
        self.bin = need.found
        self.root = Path(root)
        self.source = Path(source)
        self.store = self.root / "store"
        self.log = self.root / "log"
        self.root.mkdir(parents=True)
        for folder in ("home", "cache"):
            (self.root / folder).mkdir()
        self.env = {
            "PATH": os.environ.get("PATH", ""), "HOME": str(self.root / "home"), "LANG": "C.UTF-8",
            "XDG_CACHE_HOME": str(self.root / "cache"), "TMPDIR": str(self.root), **self.settings(),
        }

    def settings(self):
        """What it is told by the environment."""
        return {}

    def first(self):
        """Makes the repository, and the first backup."""
        raise NotImplementedError

    def backup(self):
        """The next backup."""
        raise NotImplementedError

    def restore(self, to):
        """Brings the last backup into the folder `to`."""
        raise NotImplementedError

    def run(self, *command, cwd=None):
        """Runs a command of it; returns what it cost."""
        return run(command, self.env, cwd or self.source.parent, log=self.log)[0]

    def shell(self, line):
        """Runs a pipe in which every part has to succeed."""
        return self.run("bash", "-c", f"set -euo pipefail; {line}")

    def stop(self):
        """Nothing runs on."""


class Restic(Batch):
    def settings(self):
        return {"RESTIC_REPOSITORY": str(self.store), "RESTIC_PASSWORD": SECRET,
                "RESTIC_CACHE_DIR": str(self.root / "cache")}

    def first(self):
        return self.run(self.bin["restic"], "init", "-q") + self.backup()

    def backup(self):
        return self.run(self.bin["restic"], "backup", "-q", self.source.name)

    def restore(self, to):
        return self.run(self.bin["restic"], "restore", "-q", "latest", "--target", to)


class Rustic(Batch):
    def settings(self):
        return {"RUSTIC_REPOSITORY": str(self.store), "RUSTIC_PASSWORD": SECRET,
                "RUSTIC_CACHE_DIR": str(self.root / "cache"), "RUSTIC_NO_PROGRESS": "true",
                "RUSTIC_LOG_LEVEL": "warn"}

    def first(self):
        return self.run(self.bin["rustic"], "init") + self.backup()

    def backup(self):
        return self.run(self.bin["rustic"], "backup", self.source.name)

    def restore(self, to):
        return self.run(self.bin["rustic"], "restore", "latest", to)


class Borg(Batch):
    count = 0

    def settings(self):
        return {"BORG_REPO": str(self.store), "BORG_PASSPHRASE": SECRET, "BORG_BASE_DIR": str(self.root / "home"),
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def first(self):
        return self.run(self.bin["borg"], "init", "-e", "repokey-blake2") + self.backup()

    def backup(self):
        self.count += 1
        return self.run(self.bin["borg"], "create", f"::{self.count}", self.source.name)

    def restore(self, to):
        return self.run(self.bin["borg"], "extract", f"::{self.count}", cwd=to)


class Bupstash(Batch):
    count = 0

    def settings(self):
        return {"BUPSTASH_REPOSITORY": str(self.store), "BUPSTASH_KEY": str(self.root / "key"),
                "BUPSTASH_SEND_LOG": str(self.root / "cache/send-log"),
                "BUPSTASH_QUERY_CACHE": str(self.root / "cache/query-cache")}

    def first(self):
        key = self.run(self.bin["bupstash"], "new-key", "-o", self.root / "key")
        return key + self.run(self.bin["bupstash"], "init") + self.backup()

    def backup(self):
        self.count += 1
        return self.run(self.bin["bupstash"], "put", "-q", f"count={self.count}", self.source)

    def restore(self, to):
        return self.shell(f"'{self.bin['bupstash']}' get -q count={self.count} > '{to}/{self.source.name}'")


class Rclone(Batch):
    def config(self):
        return ("--config", self.root / "rclone.conf", "-q")

    def first(self):
        password = run([self.bin["rclone"], "obscure", SECRET], self.env)[1].strip()
        (self.root / "rclone.conf").write_text(
            f"[sealed]\ntype = crypt\nremote = {self.store}\npassword = {password}\n"
        )
        self.store.mkdir()
        return self.backup()

    def backup(self):
        folder = self.source if self.source.is_dir() else self.source.parent
        return self.run(self.bin["rclone"], *self.config(), "sync", folder, "sealed:")

    def restore(self, to):
        return self.run(self.bin["rclone"], *self.config(), "copy", "sealed:", to)


class Script(Batch):
    """`.backup`, zstd, age: the script that people write. Every backup is a new file."""

    count = 0

    def first(self):
        self.store.mkdir()
        return self.run(self.bin["age-keygen"], "-o", self.root / "key") + self.backup()

    def backup(self):
        self.count += 1
        copy, target = self.root / "copy.db", self.store / f"{self.count:05}.zst.age"
        cost = self.shell(
            f"'{self.bin['sqlite3']}' '{self.source}' \".backup '{copy}'\" && "
            f"'{self.bin['zstd']}' -3 -q -c '{copy}' | '{self.bin['age']}' -e -i '{self.root}/key' -o '{target}'"
        )
        copy.unlink()
        return cost

    def restore(self, to):
        newest = self.store / f"{self.count:05}.zst.age"
        return self.shell(
            f"'{self.bin['age']}' -d -i '{self.root}/key' '{newest}' | "
            f"'{self.bin['zstd']}' -d -q -c > '{to}/{self.source.name}'"
        )


KINDS = {"restic": Restic, "rustic": Rustic, "borg": Borg, "bupstash": Bupstash, "rclone": Rclone, "script": Script}
# those that can back up a folder of attachments
MEDIA = ("restic", "rustic", "borg", "bupstash", "rclone")
