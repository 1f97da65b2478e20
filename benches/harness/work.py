"""The work that everything is measured with: `chatkeep-bench` makes it and does it."""

import json
import shutil
import subprocess
from pathlib import Path

from .process import Failed, process_clock, run


class Bench:
    """The program `chatkeep-bench`."""

    def __init__(self, bin_dir):
        # another build of the service may come without it; ours does then
        places = [Path(bin_dir), Path(__file__).resolve().parents[2] / "target/dist"]
        self.program = next((found for place in places if (found := place / "chatkeep-bench").is_file()), None)
        if self.program is None:
            raise Failed("chatkeep-bench is not built: run `cargo build --profile dist -p chatkeep-benches`")

    def ask(self, *arguments):
        """Runs it; returns its answer."""
        return json.loads(run([self.program, *arguments])[1])

    def database(self, folder, messages, seed):
        """A filled database, made once for each folder."""
        file = Path(folder) / f"chat-{messages}-{seed}.db"
        if not file.exists():
            part = file.with_suffix(".part")
            part.unlink(missing_ok=True)
            self.ask("create", part, "--messages", messages, "--seed", seed)
            part.rename(file)
        return file

    def media(self, folder, files, mean_bytes, seed):
        """A folder of attachments, made once."""
        place = Path(folder) / f"media-{files}-{seed}"
        if not place.exists():
            part = place.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            self.ask("media", part, "--files", files, "--mean-bytes", mean_bytes, "--seed", seed)
            part.rename(place)
        return place

    def check(self, file):
        """What SQLite says about a database, the rows of its tables; and the CPU seconds of SQLite's check."""
        found = self.ask("check", file)
        cpu = found.pop("cpu")
        found["rows"] = {name: rows for name, rows in found["rows"].items() if not name.startswith("_litestream")}
        return found, cpu


class App:
    """An app that has the database open and writes as told."""

    def __init__(self, bench, file):
        self.child = subprocess.Popen(
            [bench.program, "app", file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, order):
        """Does as told and answers when it is done."""
        self.begin(order)
        return self.finish()

    def begin(self, order):
        """Tells it; `finish` waits for the answer."""
        self.child.stdin.write(order + "\n")
        self.child.stdin.flush()

    def finish(self):
        """The answer to the order begun."""
        line = self.child.stdout.readline()
        if not line:
            raise Failed(f"the app failed: it ended with {self.child.wait()}")
        return json.loads(line)

    def cpu(self):
        """CPU seconds that it used so far."""
        return process_clock(self.child.pid)

    def close(self):
        """Closes the database."""
        self.child.stdin.close()
        if self.child.wait() != 0:
            raise Failed(f"the app ended with {self.child.returncode}")
