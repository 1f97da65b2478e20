#!/usr/bin/env python3
"""What capturing costs, and what the app that is captured notices of it. Run by itself, or by peers.py as its last test.

Two equal databases are written by equal apps: one is watched by chatkeepd, the other is not. docs/benchmarks.md says
what each figure means. The last line is JSON.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness.chatkeep import Chatkeep  # noqa: E402
from harness.process import end_cleanly  # noqa: E402
from harness.store import Store  # noqa: E402
from harness.work import App, Bench  # noqa: E402

MESSAGES = 346_000
# what is written before one capture; `single` is one transaction
ORDERS = ("single 1", "single 10", "burst 10", "burst 100", "burst 1000")
# the one that the aim for a small capture is held against
SMALL = "burst 10"
QUIET = 4.0
# a first point that is later than this counts as none
LATE = 60.0


class Pair:
    """A watched database and its twin, and an app in each."""

    def __init__(self, bench, bin_dir, root, database):
        self.bench = bench
        self.root = Path(root)
        shutil.rmtree(self.root, ignore_errors=True)
        self.files = {}
        for name in ("watched", "free"):
            (self.root / name).mkdir(parents=True)
            self.files[name] = self.root / name / "chat.db"
            shutil.copyfile(database, self.files[name])
        self.service = Chatkeep(bin_dir, self.root / "m", self.root / "store")
        self.store = Store(self.root / "store")
        self.apps = {}

    def __enter__(self):
        self.apps = {name: App(self.bench, file) for name, file in self.files.items()}
        return self

    def __exit__(self, *_):
        self.service.stop()
        for app in self.apps.values():
            app.child.kill()
            app.child.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def capture(self, order):
        """The watched app writes, and the service puts it."""
        self.apps["watched"].tell(order)
        self.settle(1.5)

    def settle(self, quiet=QUIET, something=True):
        """Waits until the service has put what there was to put."""
        self.store.settle(quiet, self.service.daemon.alive, something=something)


def first(pair):
    """The first backup: what it costs, and how many cores it keeps busy."""
    pair.service.start()
    cost = pair.service.metered(lambda: pair.service.protect(pair.files["watched"]))
    pair.store.mark()
    pair.settle(something=False)
    return {"first_cpu": cost.cpu, "first_wall": cost.wall, "first_peak": cost.peak,
            "first_cores": cost.cpu / cost.wall}


def small_captures(pair, repeats):
    """Captures of a few pages, and the least that they could cost: reading and compressing those pages."""
    before = pair.root / "before.db"
    figures = {}
    for order in ORDERS:
        costs, least, pages = [], [], []
        for _ in range(repeats):
            pair.store.mark()
            costs.append(pair.service.metered(lambda order=order: pair.capture(order)).cpu)
            shutil.copyfile(pair.files["free"], before)
            pair.apps["free"].tell(order)
            pair.apps["free"].tell("checkpoint")
            found = pair.bench.ask("pages", before, pair.files["free"])
            least.append(found["cpu_s"])
            pages.append(found["pages"])
        figures[order] = {"cpu": median(costs), "least": median(least), "pages": median(pages),
                          "ratio": median(costs) / median(least)}
    before.unlink()
    return {"captures": figures, "small_capture_ratio": figures[SMALL]["ratio"]}


def writers(pair, pairs, seconds):
    """Commits as fast as they go, by turns with us and without, and who goes first by turns."""
    runs = {"free": [], "watched": []}
    for turn in range(pairs):
        for name in sorted(runs, reverse=bool(turn % 2)):
            pair.store.mark()
            cpu = pair.apps[name].cpu()
            found = pair.apps[name].tell(f"hammer {seconds}")
            found |= {"rate": found["commits"] / found["seconds"], "cpu": pair.apps[name].cpu() - cpu}
            runs[name].append(found)
            if name == "watched":
                pair.settle()

    def ratios(of):
        return [of(with_us) / of(without) for with_us, without in zip(runs["watched"], runs["free"])]

    def over(how, name, key):
        return how(one[key] for one in runs[name])

    rates = ratios(lambda one: one["rate"])
    return {
        "commit_rate": over(median, "free", "rate"), "commit_rate_ratio": median(rates), "commit_rate_ratios": rates,
        "commit_cpu_ratio": median(ratios(lambda one: one["cpu"] / one["commits"])),
        "busy": over(sum, "watched", "busy"),
        "worst_commit_ms": over(max, "watched", "worst_us") / 1000,
        "worst_commit_without_ms": over(max, "free", "worst_us") / 1000,
        "p99_commit_ms": over(median, "watched", "p99_us") / 1000,
        "p99_commit_without_ms": over(median, "free", "p99_us") / 1000,
    }


def at_risk(pair, order):
    """The oldest commit that was not in the store yet, at the worst moment: seconds.

    A commit is at risk from when it is made until a point that holds it is in the store. The worst one is made right
    after a point's state was read, and waits until the next point is there.
    """
    states, arrived = [], []
    known = {point["id"] for point in pair.service.points()}
    pair.store.mark()
    began = time.time()
    pair.apps["watched"].begin(order)
    ends = time.monotonic() + int(order.split()[1])
    seen = 0
    while time.monotonic() < ends or (not arrived and time.monotonic() < ends + LATE):
        if len(pair.store.look()) > seen:
            seen = len(pair.store.seen)
            new = [point for point in pair.service.points() if point["id"] not in known]
            known.update(point["id"] for point in new)
            for point in reversed(new):
                states.append(point["time"] / 1e6)
                arrived.append(time.time())
        time.sleep(0.01)
    pair.apps["watched"].finish()
    pair.settle(something=not states)
    waits = [there - state for state, there in zip([began, *states], arrived)]
    return max(waits) if waits else None


def measure(bench, bin_dir, work, seed, quick):
    """All figures."""
    database = bench.database(work, MESSAGES, seed)
    with Pair(bench, bin_dir, Path(work) / "c", database) as pair:
        figures = first(pair)
        figures |= small_captures(pair, 5 if quick else 15)
        figures |= writers(pair, 3 if quick else 7, 2 if quick else 4)
        figures["at_risk_a_second_s"] = at_risk(pair, f"drip {20 if quick else 60}")
        figures["at_risk_hammer_s"] = at_risk(pair, f"hammer {15 if quick else 30}")
        return figures


def table(figures):
    """Markdown."""
    lines = ["### Capture", "", "| written | pages | CPU ms | reading and compressing them, ms | ratio |",
             "|---|---|---|---|---|"]
    for order, one in figures["captures"].items():
        lines.append(f"| {order} | {one['pages']:.0f} | {one['cpu'] * 1e3:.2f} | {one['least'] * 1e3:.2f} "
                     f"| {one['ratio']:.1f} |")

    def seconds(value):
        return "not seen" if value is None else f"{value:.1f} s"

    lines += [
        "", "| | |", "|---|---|",
        f"| first backup: CPU s, cores busy, peak MiB | {figures['first_cpu']:.2f}, {figures['first_cores']:.2f}, "
        f"{figures['first_peak'] / 2**20:.0f} |",
        f"| commit rate with us / without (lowest and highest pair) | {figures['commit_rate_ratio']:.3f} "
        f"({min(figures['commit_rate_ratios']):.2f}–{max(figures['commit_rate_ratios']):.2f}) |",
        f"| the app's CPU for a commit, with us / without | {figures['commit_cpu_ratio']:.3f} |",
        f"| commits refused as locked | {figures['busy']} |",
        f"| slowest commit with us / without | {figures['worst_commit_ms']:.1f} / "
        f"{figures['worst_commit_without_ms']:.1f} ms |",
        f"| 99 of 100 commits within, with us / without | {figures['p99_commit_ms']:.3f} / "
        f"{figures['p99_commit_without_ms']:.3f} ms |",
        f"| data at risk at the worst moment, a message a second | {seconds(figures['at_risk_a_second_s'])} |",
        f"| the same, without a pause | {seconds(figures['at_risk_hammer_s'])} |",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--bin-dir", type=Path, default=HERE.parents[1] / "target/dist",
                        help="where chatkeepd and chatkeep are [target/dist]")
    parser.add_argument("--seed", type=int, default=1, help="what is written follows from it")
    args = parser.parse_args()
    end_cleanly()
    work = Path(tempfile.mkdtemp(prefix="ckb-", dir="/var/tmp"))
    try:
        figures = measure(Bench(args.bin_dir), args.bin_dir, work, args.seed, args.quick)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(table(figures), "", json.dumps({"benchmark": "capture", "quick": args.quick, "seed": args.seed, **figures}),
          sep="\n")


if __name__ == "__main__":
    main()
