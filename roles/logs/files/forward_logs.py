#!/usr/bin/python3
"""Forward the lines of log files to the journal, over rotations, restarts and crashes.

The positions in the files are saved after each batch, so a crash repeats at most one batch and loses no line.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import re
import socket
import sys
import time
from pathlib import Path

from files import write_atomically
from follow import Follower

JOURNAL = "/run/systemd/journal/socket"
PAUSE_SECONDS = 0.5
BATCH_BYTES = 1 << 20
# Postgres' severities as priorities of syslog; all other lines are informational.
SEVERITY = re.compile(rb'"error_severity":"([A-Z]+)"')
PRIORITIES = {b"PANIC": 0, b"FATAL": 2, b"ERROR": 3, b"WARNING": 4}


def send(journal: socket.socket, identifier: str, line: bytes) -> None:
    """Send a line to the journal in its native protocol; block while the journal is busy.

    Bytes that are not UTF-8 are replaced, because readers of the journal leave such messages out.
    """
    severity = SEVERITY.search(line)
    priority = PRIORITIES.get(severity[1], 6) if severity else 6
    message = line.decode(errors="replace").encode()
    entry = b"PRIORITY=%d\nSYSLOG_IDENTIFIER=%b\nMESSAGE=%b\n" % (priority, identifier.encode(), message)
    try:
        journal.send(entry)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        # A line that is larger than a datagram goes through a sealed memfd.
        memory = os.memfd_create("line", os.MFD_ALLOW_SEALING)
        try:
            os.write(memory, entry)
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
            journal.sendmsg(
                [b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]).tobytes())]
            )
        finally:
            os.close(memory)


def save(path: Path, followers: dict[str, Follower]) -> None:
    """Save how far each file was read."""
    text = json.dumps({name: follower.positions for name, follower in followers.items()})
    # Without fsync: after a power cut Nginx and Postgres have lost lines of the same moment.
    write_atomically(path, text, 0o600, sync=False)


def main() -> None:
    """Forward until the process is stopped; the only argument is the configuration, {path: identifier}."""
    identifiers: dict[str, str] = json.loads(Path(sys.argv[1]).read_text())
    positions_file = Path(os.environ["STATE_DIRECTORY"]) / "positions.json"
    positions = json.loads(positions_file.read_text()) if positions_file.exists() else {}
    followers = {path: Follower(Path(path), positions.get(path)) for path in identifiers}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.connect(JOURNAL)
        saved = ""
        while True:
            for path, follower in followers.items():
                size = 0
                for line in follower.new_lines():
                    send(journal, identifiers[path], line)
                    size += len(line)
                    if size > BATCH_BYTES:
                        save(positions_file, followers)
                        size = 0
            state = json.dumps([follower.positions for follower in followers.values()])
            if state != saved:
                save(positions_file, followers)
                saved = state
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
