"""The scoring rules of MDN's HTTP Observatory 1.4.8 that a service without pages can meet or miss.

The tool itself refuses a host whose root answers 404. `molecule/security` runs it in `make soak`.
"""

from __future__ import annotations

from tests.edge import Answer

# Half a year, in seconds.
HSTS_SECONDS = 15552000


def directives(policy: str) -> dict[str, set[str]]:
    """Return the sources of each directive of a Content-Security-Policy."""
    words = [directive.split() for directive in policy.split(";")]
    return {name: set(sources) for name, *sources in filter(None, words)}


def score(plain: Answer, answer: Answer) -> dict[str, int]:
    """Return the points of each rule for a root over HTTP and over TLS, which add to 100."""
    headers = answer.headers
    policy = directives(headers["Content-Security-Policy"] or "")
    age = dict(part.partition("=")[::2] for part in (headers["Strict-Transport-Security"] or "").split("; "))
    frames = policy.get("frame-ancestors", set())
    return {
        "status": 0 if 200 <= answer.status < 400 else -100,
        "redirection": 0 if plain.status == 301 and plain.headers["Location"].startswith("https:") else -20,
        "content-security-policy": 10 if policy.get("default-src") == {"'none'"} else -25,
        "cross-origin-resource-policy": 10
        if headers["Cross-Origin-Resource-Policy"] in {"same-origin", "same-site"}
        else 0,
        "cross-origin-resource-sharing": -50 if headers["Access-Control-Allow-Origin"] else 0,
        "cookies": -20 if headers["Set-Cookie"] else 0,
        "referrer-policy": 5 if headers["Referrer-Policy"] in {"no-referrer", "same-origin"} else 0,
        "strict-transport-security": 0 if int(age.get("max-age", 0)) >= HSTS_SECONDS else -20,
        "x-content-type-options": 0 if headers["X-Content-Type-Options"] == "nosniff" else -5,
        "x-frame-options": 5 if frames and frames <= {"'none'", "'self'"} else -20,
    }
