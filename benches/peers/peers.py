#!/usr/bin/env python3
"""Chatkeep beside what users would otherwise pick: the same work, in one run, on this machine.

Runs Chatkeep and every peer that is on the PATH or in a folder given by --peers-bin; installs nothing, and says what is
missing and which command would bring it. docs/benchmarks.md says what is measured. The last line is JSON. The exit
status is 1 if a program failed or if something did not come back sound; whether an aim is met does not change it.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parent / "capture")]

import batch  # noqa: E402
import capture  # noqa: E402
import live  # noqa: E402
import measure  # noqa: E402
import programs  # noqa: E402
import report  # noqa: E402
from harness.process import Failed, end_cleanly  # noqa: E402
from harness.work import Bench  # noqa: E402

# about 100 MB and 1 GB
SMALL, BIG = 346_000, 3_306_000
MEDIA_FILES, MEDIA_MEAN = 2000, 494_000
OURS = "chatkeep"


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small database only, once, shorter waits")
    parser.add_argument("--bin-dir", type=Path, default=HERE.parents[1] / "target/dist",
                        help="where chatkeepd and chatkeep are [target/dist]")
    parser.add_argument("--peers-bin", type=Path, action="append", default=[], metavar="DIR",
                        help="look for peers here, before the PATH; may be repeated")
    parser.add_argument("--peers", help="only these, with commas between them")
    parser.add_argument("--tests", default="abcdfgk",
                        help="a first, b bursts, d restore (together); c many small; f at rest; g media; k capture")
    parser.add_argument("--repeats", type=int, help="of a, b and d [3, with --quick 1]")
    parser.add_argument("--seed", type=int, default=1, help="what is written follows from it")
    parser.add_argument("--work", type=Path, help="a folder for about 6 GB [a temporary one]")
    return parser.parse_args()


class Run:
    """Everything that is run, and what came of it."""

    def __init__(self, args, work):
        self.args = args
        self.work = work
        self.bench = Bench(args.bin_dir)
        self.rows = {}
        self.failures = []
        self.present, self.missing = programs.find(args.peers_bin)
        self.makers = {OURS: lambda root, source: live.Ours(args.bin_dir, root, source)}
        for name, need in self.present.items():
            kind = batch.KINDS.get(name, live.Litestream)
            self.makers[name] = lambda root, source, kind=kind, need=need: kind(need, root, source)
        if args.peers:
            wanted = args.peers.split(",")
            self.makers = {name: make for name, make in self.makers.items() if name in wanted}

    def each(self, what, work, names=None):
        """Does `work` with every peer; one that fails is named and left out."""
        for name, make in self.makers.items():
            if names is not None and name not in names:
                continue
            print(f"  {what}: {name}", file=sys.stderr, flush=True)
            try:
                found = work(make)
            except (Failed, OSError) as failed:
                self.failures.append(f"{name}, {what}: {failed}")
                print(f"  {self.failures[-1]}", file=sys.stderr, flush=True)
                continue
            for test, line in found.items():
                self.rows.setdefault(test, {}).setdefault(name, []).append(line)
                if line.get("sound") is False:
                    self.failures.append(f"{name}, {what}: what came back is not what was there")

    def session(self, make, database):
        """A peer on a copy of the database."""
        return measure.Session(self.bench, make, self.work / "s", database)

    def databases(self):
        """Tests a to f."""
        args = self.args
        small = self.bench.database(self.work, SMALL, args.seed)
        size = small if args.quick else self.bench.database(self.work, BIG, args.seed)

        def abd(make):
            with self.session(make, size) as session:
                return measure.first_bursts_restore(session)

        def cf(make):
            with self.session(make, small) as session:
                return measure.many_and_rest(session, self.rounds, 20 if args.quick else 60)

        if set(args.tests) & set("abd"):
            for repeat in range(args.repeats or (1 if args.quick else 3)):
                self.each(f"first, bursts, restore, {repeat + 1}", abd)
        if set(args.tests) & set("cf"):
            self.each("many small backups, rest", cf)

    @property
    def rounds(self):
        """Rounds of test c."""
        return 20 if self.args.quick else report.ROUNDS

    def media(self):
        """Test g."""
        files = MEDIA_FILES // (10 if self.args.quick else 1)
        folder = self.bench.media(self.work, files, MEDIA_MEAN, self.args.seed)
        ours = {OURS: lambda root, source: live.OursAttachments(self.bench, self.args.bin_dir, root, source)}
        self.makers |= {name: make for name, make in ours.items() if name in self.makers}
        self.each("attachments", lambda make: measure.media(make, self.work / "s", folder), (OURS, *batch.MEDIA))

    def capture(self):
        """The figures of benches/capture."""
        try:
            return capture.measure(self.bench, self.args.bin_dir, self.work, self.args.seed, self.args.quick)
        except (Failed, OSError) as failed:
            self.failures.append(f"capture: {failed}")
            return {}


def main():
    args = arguments()
    end_cleanly()
    lacking = [name for name in ("chatkeepd", "chatkeep") if not (args.bin_dir / name).is_file()]
    if lacking:
        sys.exit(f"not in {args.bin_dir}: {', '.join(lacking)}; "
                 "run `cargo build --profile dist -p chatkeepd -p chatkeep -p chatkeep-benches`, or use --bin-dir")
    work = args.work or Path(tempfile.mkdtemp(prefix="ckb-", dir="/var/tmp"))
    work.mkdir(exist_ok=True)
    run = Run(args, work)
    for name, need in run.missing.items():
        print(f"missing: {name}; to have it: {need.install}", file=sys.stderr)
    try:
        if set(args.tests) & set("abcdf"):
            run.databases()
        if "g" in args.tests:
            run.media()
        figures = run.capture() if "k" in args.tests else {}
    finally:
        if not args.work:
            shutil.rmtree(work, ignore_errors=True)
    show(run, figures)
    sys.exit(1 if run.failures else 0)


def show(run, figures):
    """Prints the tables, and one line of JSON."""
    results = {
        test: {name: report.medians(lines) for name, lines in peers.items()} for test, peers in run.rows.items()
    }
    aims = report.aims(results, figures, run.rounds)
    print(report.summary(results), "", report.tables(results), "", report.aims_table(aims), "", sep="\n")
    if figures:
        print(capture.table(figures), "", sep="\n")
    for name, need in run.missing.items():
        print(f"Missing: {name} ({need.install})")
    for failure in run.failures:
        print(f"FAILED: {failure}")
    print(json.dumps({
        "benchmark": "peers", "quick": run.args.quick, "seed": run.args.seed, "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1), "versions": {name: need.version for name, need in run.present.items()},
        "missing": list(run.missing), "failures": len(run.failures), "aims": aims, "results": results,
        "capture": figures,
    }))


if __name__ == "__main__":
    main()
