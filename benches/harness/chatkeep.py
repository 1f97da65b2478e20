"""Our service with a home of its own: nothing of the user's is read or changed."""

import json
import os
import time
from pathlib import Path

from .process import Cost, Daemon, Failed, run

CONFIG = """[service]
key_storage = "file"

[[store]]
name = "shelf"
url = "file://{store}"
"""
# a path of a unix socket has at most 107 bytes
ROOT_MAX = 80


def unit_environment():
    """What the service's unit sets for it."""
    unit = Path(__file__).resolve().parents[2] / "systemd/chatkeepd.service"
    lines = (line.removeprefix("Environment=") for line in unit.read_text().splitlines() if line.startswith("Environment="))
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


class Chatkeep:
    """`chatkeepd` as it comes, every setting at its default, and the command `chatkeep`."""

    def __init__(self, programs, root, store):
        self.programs = Path(programs)
        self.root = Path(root)
        if len(str(self.root)) > ROOT_MAX:
            raise Failed(f"{self.root} is too long for a socket: use --work with a shorter folder")
        self.store = Path(store)
        for folder in ("home", "config/chatkeep", "data", "state", "run"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "run").chmod(0o700)
        self.store.mkdir(parents=True, exist_ok=True)
        (self.root / "config/chatkeep/config.toml").write_text(CONFIG.format(store=self.store))
        self.env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.root / "home"),
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "XDG_DATA_HOME": str(self.root / "data"),
            "XDG_STATE_HOME": str(self.root / "state"),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.root}/no-bus",
            "RUST_LOG": "warn",
            **unit_environment(),
        }
        self.log = self.root / "chatkeepd.log"
        self.daemon = None

    def start(self):
        """Starts the service and waits until it answers."""
        self.daemon = Daemon([self.programs / "chatkeepd", "--no-bus"], self.env, self.log)
        deadline = time.monotonic() + 30
        while True:
            self.daemon.alive()
            try:
                status = self.command("status", ok=range(256))[1]
            except ValueError:
                status = {}  # it says in words that nobody answers
            if "verdict" in status:
                return
            if time.monotonic() > deadline:
                raise Failed(f"chatkeepd does not answer: {status}")
            time.sleep(0.05)

    def stop(self):
        """Ends the service."""
        if self.daemon:
            self.daemon.stop()

    def command(self, *arguments, secret=None, ok=(0,)):
        """Runs `chatkeep --json`; returns its cost and the last thing it said."""
        cost, output = run(
            [self.programs / "chatkeep", "--json", *arguments], self.env, stdin=secret, log=self.log, ok=ok
        )
        lines = [json.loads(line) for line in output.splitlines() if line.strip()]
        return cost, lines[-1] if lines else {}

    def metered(self, work):
        """Does `work`, which returns the cost of the commands it ran; adds the service's own."""
        self.daemon.forget_peak()
        cpu, began = self.daemon.cpu(), time.monotonic()
        commands = work() or Cost()
        cost = Cost(self.daemon.cpu() - cpu + commands.cpu, time.monotonic() - began, self.daemon.memory())
        return cost

    def protect(self, database, attachments=None):
        """Has a database watched under the name `chat`, with 64 new digits, and waits for its first backup."""
        digits = self.root / "digits"
        more = ["--attachments", attachments] if attachments else []
        registered, answer = self.command("register", database, "--name", "chat", *more)
        keyed, _ = self.command(
            "encryption", "generate-key", answer["id"], "--key-out", digits, "--confirm-from-file", digits
        )
        backed_up, _ = self.command("backup", answer["id"], "--wait")
        return registered + keyed + backed_up

    def points(self):
        """The recovery points, newest first."""
        points = self.command("points", "chat")[1]["points"]
        return sorted(points, key=lambda point: -point["time"])

    def restore_elsewhere(self, to):
        """Brings the database to a new machine with the store and the digits only; returns what that cost."""
        digits = (self.root / "digits").read_text()
        self.stop()
        other = Chatkeep(self.programs, self.root / "new", self.store)
        try:
            began = time.monotonic()
            other.start()
            cost, found = other.command("list-remote", "shelf")
            archive = found["archives"][0]["id"]
            cost += other.command("adopt", "shelf", archive, "--to", other.root / "home/chat.db", "--name", "chat")[0]
            cost += other.command("unlock", "chat", "--key-fd", "0", secret=digits)[0]
            cost += other.command("restore", "chat", "--to", to)[0]
            cpu = cost.cpu + other.daemon.cpu()
            return Cost(cpu, time.monotonic() - began, other.daemon.memory())
        finally:
            other.stop()
