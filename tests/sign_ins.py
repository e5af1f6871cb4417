"""Guesses of passwords from many addresses at once.

Usage: python -m tests.sign_ins ADDRESS NAME SECONDS RATE SOURCE...

Each source sends RATE sign-ins a second, each on a connection of its own, for an account that does not exist.
Prints {status: number} as JSON; what got no answer has the status 0.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import threading
import time
from collections import Counter


def guess(address: str, name: str, until: float, rate: float, source: str, found: Counter[int]) -> None:
    """Send sign-ins from one source until a time of time.monotonic."""
    context = ssl._create_unverified_context()  # noqa: S323  (an attacker checks nothing)
    headers = {"Host": name, "Content-Type": "application/json"}
    due = time.monotonic()
    while due < until:
        client = http.client.HTTPSConnection(address, timeout=20, source_address=(source, 0), context=context)
        # A new name each time: the limit of an account does not help.
        body = json.dumps({"username": f"guess-{source}-{due}", "password": "wrong-wrong-wrong"})
        try:
            client.request("POST", "/api/v1/auth/token", body, headers)
            found[client.getresponse().status] += 1
        except OSError:
            found[0] += 1
        finally:
            client.close()
        due = max(due + 1 / rate, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    """Run all sources side by side."""
    address, name, seconds, rate, *sources = sys.argv[1:]
    until, found = time.monotonic() + float(seconds), Counter[int]()
    threads = [
        threading.Thread(target=guess, args=(address, name, until, float(rate), source, found))
        for source in sources
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
