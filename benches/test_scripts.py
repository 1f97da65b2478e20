"""Tests of the scripts themselves: `cargo test -p chatkeep-benches` runs them."""

import os
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]

import programs  # noqa: E402
import report  # noqa: E402
from harness.process import Failed, run  # noqa: E402
from harness.store import Put, Store  # noqa: E402
from measure import Meter  # noqa: E402


class InAFolder(unittest.TestCase):
    def setUp(self):
        kept = tempfile.TemporaryDirectory()
        self.addCleanup(kept.cleanup)
        self.folder = Path(kept.name)


class Puts(InAFolder):
    def write(self, name, length):
        (self.folder / name).write_bytes(bytes(length))

    def test_what_was_there_before_the_mark_does_not_count(self):
        self.write("old", 10)
        store = Store(self.folder)
        self.write("new", 5)
        self.assertEqual(store.put(), Put(5, 1))

    def test_an_object_that_is_written_again_counts_again(self):
        self.write("index", 10)
        store = Store(self.folder)
        self.write("index", 11)
        self.assertEqual(store.put(), Put(11, 1))

    def test_a_temporary_name_that_became_another_counts_once(self):
        store = Store(self.folder)
        self.write("part", 7)
        store.look()
        (self.folder / "part").rename(self.folder / "whole")
        self.assertEqual(store.put(), Put(7, 1))

    def test_what_was_seen_and_is_deleted_again_counts(self):
        store = Store(self.folder)
        self.write("level-0", 7)
        store.look()
        self.write("level-1", 9)
        (self.folder / "level-0").unlink()
        self.assertEqual(store.put(), Put(16, 2))


class Runs(unittest.TestCase):
    def test_the_cost_of_a_program_has_what_it_started_in_it(self):
        burn = "import time\nwhile time.process_time() < 0.2: pass"
        cost, _ = run(["sh", "-c", f"{sys.executable} -c '{burn}'; true"])
        self.assertGreater(cost.cpu, 0.19)

    def test_a_program_that_fails_is_named_with_what_it_said(self):
        with self.assertRaisesRegex(Failed, "sh ended with 3: no luck"):
            run(["sh", "-c", "echo no luck >&2; exit 3"])


class Threads:
    """A daemon whose threads come and go: each call of `wakeups` gives the next counts."""

    def __init__(self, *counts):
        self.counts = iter(counts)

    def wakeups(self):
        return next(self.counts)

    def forget_peak(self):
        pass

    def cpu(self):
        return 0.0

    memory = cpu


class Wakeups(unittest.TestCase):
    def test_a_thread_that_ends_keeps_its_wakeups(self):
        with Meter(Threads({"1": 100, "2": 50}, {"1": 101, "2": 53, "3": 4}, {"1": 102})) as meter:
            meter.look()
        self.assertEqual(meter.wakeups, 2 + 3 + 4)


class Programs(InAFolder):
    def litestream(self, name, version):
        file = self.folder / name
        file.write_text(f"#!/bin/sh\necho {version}\n")
        file.chmod(0o755)

    def found(self):
        before, os.environ["PATH"] = os.environ["PATH"], "/usr/bin:/bin"
        try:
            present, missing = programs.find([self.folder])
        finally:
            os.environ["PATH"] = before
        return {**present, **missing}

    def test_the_version_decides_which_litestream_it_is(self):
        self.litestream("litestream", "v0.3.13")
        self.litestream("litestream-new", "0.5.17")
        found = self.found()
        self.assertEqual(found["litestream-0.3"].found["litestream"].name, "litestream")
        self.assertEqual(found["litestream-0.5"].found["litestream"].name, "litestream-new")

    def test_an_unknown_version_is_not_taken_for_another(self):
        self.litestream("litestream", "0.6.0")
        found = self.found()
        self.assertNotIn("litestream", found["litestream-0.3"].found)
        self.assertNotIn("litestream", found["litestream-0.5"].found)


class Aims(unittest.TestCase):
    def aim(self, name, results):
        return next(aim for aim in report.aims(results, {}, report.ROUNDS) if aim["name"].startswith(name))

    def test_a_ratio_is_ours_by_theirs(self):
        results = {"d": {"chatkeep": {"cpu": 1.0}, "bupstash": {"cpu": 2.0}}}
        self.assertEqual(self.aim("restore, SQLite's check in ours", results), {
            "name": "restore, SQLite's check in ours only: CPU / bupstash's", "aim": "<= 0.8", "value": 0.5, "met": True})
        results["d"]["chatkeep"]["cpu"] = 1.7
        self.assertIs(self.aim("restore, SQLite's check in ours", results)["met"], False)

    def test_a_restore_is_compared_with_and_without_the_check(self):
        results = {"d": {"chatkeep": {"cpu": 3.0, "check": 2.0}, "bupstash": {"cpu": 2.0}}}
        self.assertEqual(self.aim("restore, without", results)["value"], 0.5)
        self.assertEqual(self.aim("restore, SQLite's check in both", results)["value"], 0.75)

    def test_what_was_not_measured_is_neither_met_nor_missed(self):
        aim = self.aim("restore", {"d": {"chatkeep": {"cpu": 1.0}}})
        self.assertEqual((aim["value"], aim["met"]), (None, None))

    def test_fewer_rounds_are_scaled(self):
        results = {"c": {"chatkeep": {"cpu": 0.1, "bytes": 1e6}}}
        found = {aim["name"]: aim["value"] for aim in report.aims(results, {}, 10)}
        self.assertEqual(found["50 x 20 messages: MB"], 5.0)

    def test_the_summary_is_theirs_by_ours(self):
        results = {"d": {"chatkeep": {"cpu": 2.0}, "borg": {"cpu": 3.0}, "restic": {"cpu": 50.0}}}
        self.assertEqual(report.summary(results).splitlines()[2:], [
            "| | d: CPU |", "|---|---|", "| borg | 1.50 |", "| restic | 25 |"])

    def test_one_unsound_restore_of_several_is_unsound(self):
        line = report.medians([{"cpu": 1, "sound": True}, {"cpu": 3, "sound": False}, {"cpu": 2, "sound": True}])
        self.assertEqual(line, {"cpu": 2, "sound": False, "n": 3})


if __name__ == "__main__":
    unittest.main()
