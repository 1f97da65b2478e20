"""The tests: each sets a peer up on a fresh copy of the database, and returns rows of figures."""

import shutil
import time
from pathlib import Path

from harness.process import Cost, Failed
from harness.store import Put, Store
from harness.work import App

BURSTS = (1, 10, 100, 1000)


def row(cost, put, **more):
    """One line of results, in seconds and bytes."""
    return {"cpu": cost.cpu, "wall": cost.wall, "peak": cost.peak, "bytes": put.bytes, "objects": put.objects, **more}


class Session:
    """A peer at work on a copy of the database of its own."""

    def __init__(self, bench, make, root, database):
        self.bench = bench
        self.root = Path(root)
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root / "app").mkdir(parents=True)
        self.database = self.root / "app/chat.db"
        shutil.copyfile(database, self.database)
        self.peer = make(self.root / "peer", self.database)
        self.store = Store(self.peer.store)
        self.app = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.peer.stop()
        if self.app:
            self.app.child.kill()
            self.app.child.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def first(self):
        """The first backup, all preparations included."""
        self.store.mark()
        if not self.peer.live:
            return row(self.peer.first(), self.store.put())
        self.app = App(self.bench, self.database)
        cost = self.peer.first(self.store)
        line = row(cost, self.store.put())
        self.store.mark()
        self.store.settle(self.peer.first_quiet, self.peer.daemon.alive, something=False)
        return line

    def change(self, order, quiet=None):
        """The app writes, and a backup is made. A live peer's cost begins with the first commit."""
        self.store.mark()
        if not self.peer.live:
            app = App(self.bench, self.database)
            app.tell(order)
            app.close()
            cost = self.peer.backup()
            return cost, self.store.put()
        with Meter(self.peer.daemon) as meter:
            self.app.tell(order)
            self.store.settle(quiet or self.peer.quiet, self.peer.daemon.alive)
        # the quiet at the end is the stopwatch's, not the program's
        meter.cost.wall = self.store.changed_at - meter.began
        return meter.cost, self.store.put()

    def restore(self):
        """Restores, and compares with the database: SQLite's own check and the rows of every table."""
        target = self.root / "restored"
        target.mkdir()
        cost = self.peer.restore(target)
        restored = next(target.rglob("chat.db"), None)
        if restored is None:
            raise Failed("the restore gave no chat.db")
        (found, check), (expected, _) = self.bench.check(restored), self.bench.check(self.database)
        sound = found["integrity"] == "ok" and found == expected
        # ours has it in it, the others leave it to the user
        return row(cost, Put(), sound=sound, check=check)


class Meter:
    """What a daemon costs in a `with` block. Wake-ups are exact to those of threads that end between two looks."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.cost = Cost()
        self.latest = {}

    def __enter__(self):
        self.daemon.forget_peak()
        self.cpu, self.began, self.woken = self.daemon.cpu(), time.monotonic(), self.daemon.wakeups()
        return self

    def __exit__(self, failed, *_):
        if not failed:
            wall = time.monotonic() - self.began
            self.cost = Cost(self.daemon.cpu() - self.cpu, wall, self.daemon.memory())
            self.look()

    def look(self):
        """Notes the wake-ups so far, also of threads that end soon."""
        self.latest |= self.daemon.wakeups()

    @property
    def wakeups(self):
        """Wake-ups since the block began."""
        return sum(count - self.woken.get(thread, 0) for thread, count in self.latest.items())


def first_bursts_restore(session):
    """Tests a, b and d."""
    rows = {"a": session.first()}
    for count in BURSTS:
        rows[f"b+{count}"] = row(*session.change(f"burst {count}"))
    rows["d"] = session.restore()
    return rows


def many_and_rest(session, rounds, seconds):
    """Tests c and, for those that run beside the app, f."""
    session.first()
    cost, put = Cost(), Put()
    for _ in range(rounds):
        # a round need not wait for stragglers: they count in the next one
        one, added = session.change("burst 20", quiet=1.5)
        cost, put = cost + one, put + added
    rows = {"c": row(cost, put)}
    if session.peer.live:
        rows["f-rest"] = rest(session, seconds)
        rows["f-second"] = every_second(session, seconds)
    rows["c"]["sound"] = session.restore()["sound"]
    return rows


def rest(session, seconds):
    """Nothing happens."""
    session.store.mark()
    session.store.settle(session.peer.quiet, session.peer.daemon.alive, something=False)
    session.store.mark()
    with Meter(session.peer.daemon) as meter:
        ends = meter.began + seconds
        while time.monotonic() < ends:
            session.store.look()
            meter.look()
            time.sleep(0.2)
    resident = session.peer.daemon.memory("VmRSS")
    return row(meter.cost, session.store.put(), wakeups=meter.wakeups, seconds=seconds, resident=resident)


def every_second(session, seconds):
    """One message a second."""
    session.store.mark()
    with Meter(session.peer.daemon) as meter:
        session.app.begin(f"drip {seconds}")
        ends = meter.began + seconds
        while time.monotonic() < ends:
            session.store.look()
            meter.look()
            time.sleep(0.05)
        session.app.finish()
        session.store.settle(session.peer.quiet, session.peer.daemon.alive)
    return row(meter.cost, session.store.put(), wakeups=meter.wakeups, seconds=seconds)


def media(make, root, folder):
    """Test g: attachments for the first time, and again unchanged."""
    shutil.rmtree(root, ignore_errors=True)
    peer = make(Path(root) / "peer", folder)
    store = Store(peer.store)
    try:
        rows = {"g-first": row(peer.first(), store.put())}
        store.mark()
        rows["g-again"] = row(peer.backup(), store.put())
        return rows
    finally:
        peer.stop()
        shutil.rmtree(root, ignore_errors=True)
