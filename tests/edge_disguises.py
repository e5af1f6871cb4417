"""Spellings of a private path that an application might take for it."""

from __future__ import annotations

# {path} is the private path, {first} the code of its first letter, {last} what follows that letter.
DISGUISES = [
    *("{path}", "{path}/", "/{path}", "//{path}", "{path}?x=1", "{path}//x", "/%{first}{last}"),
    # Control characters, raw and encoded. An expression that ends with "$" accepts a trailing newline.
    *(
        "{path}%0a",
        "{path}%0A",
        "{path}%0d%0a",
        "{path}%00",
        "{path}%09",
        "{path}%7f",
        "/%0a{path}",
        "/%0a/..{path}",
    ),
    *("{path}\x01", "{path}\x7f", "{path}/%0a", "/%1f{path}"),
    # Dot segments
    *("/x/..{path}", "/x/%2e%2e{path}", "/x/.%2E{path}", "/.{path}", "/%2e{path}", "{path}/.", "{path}/%2e"),
    *(
        "{path}/../health/live",
        "{path}%2F..%2Fhealth/live",
        "/x%2f..{path}",
        "/x/..;{path}",
        "/x/..%3bx{path}",
    ),
    *("/x\\..{path}", "/x%5c..{path}", "/x/..%5c{path}"),
    # Slashes, encoded, doubled or in the other direction
    *(
        "/%2f{path}",
        "%2f{path}",
        "{path}%2f",
        "{path}%2fx",
        "/\\{path}",
        "/%5c{path}",
        "{path}\\",
        "{path}%5cx",
    ),
    # Matrix parameters, and what some frameworks cut off
    *(
        "{path};x",
        "{path};x=1/",
        "{path}%3bx",
        "/;x{path}",
        "{path}%20",
        "{path}%09",
        "{path}%3f",
        "{path}%23x",
    ),
    *("{path}#x", "{path}%c2%a0", "{path}%e2%80%8b", "{path}\xa0", "{path},x", "{path}:x", "{path}|x"),
    # Absolute form, and the letters' case
    *(
        "https://{name}{path}",
        "http://{name}{path}",
        "https://other.invalid{path}",
        "https://{name}/%0a{path}",
    ),
    *("{upper}", "{upper}%0a"),
]


def disguises(name: str, path: str) -> list[bytes]:
    """Return the disguises of a private path."""
    first, last = f"{ord(path[1]):x}", path[2:]
    return [
        text.format(path=path, first=first, last=last, name=name, upper=path.upper()).encode("latin-1")
        for text in DISGUISES
    ]
