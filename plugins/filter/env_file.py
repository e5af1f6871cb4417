"""Sort an application's .env file into settings, secrets and what the platform provides."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from dotenv import dotenv_values
from dotenv.parser import parse_stream

DOCUMENTATION = r"""
name: sort_env
short_description: Sort an application's .env file
description:
  - >-
    Returns a dictionary with C(environment) (templates over the objects of a service), C(secrets) and
    C(settings), each by name, C(driver) (the scheme of the database's URL) and C(known) (names of before).
  - In doubt, a value is a secret.
author: Fastmetal
positional: text
options:
  _input: {description: Content of the .env file., type: str, required: true}
  text: {description: "The file of an earlier import, whose names are left out.", type: str, required: true}
"""

EXAMPLES = r"""
__sorted: "{{ lookup('ansible.builtin.file', '.env') | fastmetal.metal.sort_env('') }}"
"""

RETURN = r"""
_value: {description: The sorted names., type: dict}
"""

POSTGRES_URL = re.compile(r"(postgres(?:ql)?(?:\+\w+)?)://")
REDIS_URL = re.compile(r"rediss?://")
POSTGRES_NAME = re.compile(r"(?:\w+_)?(?:POSTGRES(?:QL)?|PG|DB|DATABASE)_?([A-Z]+)", re.IGNORECASE)
REDIS_NAME = re.compile(r"(?:\w+_)?REDIS(?:_\w+)?_([A-Z]+)", re.IGNORECASE)
# Words of names that have parts of a URL, with the fields of the objects.
HOST = dict.fromkeys(("HOST", "HOSTNAME", "SERVER"), "host") | {"PORT": "port"}
PASSWORD = dict.fromkeys(("PASSWORD", "PASS"), "password")
POSTGRES_FIELDS = HOST | PASSWORD | {"USER": "user", "USERNAME": "user"}
POSTGRES_FIELDS |= dict.fromkeys(("DB", "NAME", "DATABASE"), "name")
REDIS_FIELDS = HOST | PASSWORD | dict.fromkeys(("USER", "USERNAME"), "username") | {"DB": "number"}
QUEUE = re.compile(r"BROKER|CELERY|QUEUE|TASK|JOB|(?:^|_)A?RQ(?:_|$)", re.IGNORECASE)
SECRET_WORDS = {
    *("APIKEY", "CREDENTIAL", "CREDENTIALS", "DSN", "KEY", "PASS", "PASSPHRASE", "PASSWD", "PASSWORD"),
    *("PEPPER", "PRIVATE", "SALT", "SECRET", "SECRETS", "TOKEN", "WEBHOOK"),
}
URL_WITH_PASSWORD = re.compile(r"\w+://[^/@\s]*:[^/@\s]+@")
RANDOM = re.compile(r"(?=.*[A-Za-z])(?=.*\d)[A-Za-z0-9+/=_-]{20,}")
# Keys of templates and tutorials: their readers could sign with them.
PLACEHOLDER = re.compile(r"|change.?(?:this|me|it)\w*|secret|your.*|x+|\W*", re.IGNORECASE)
SIGNING_KEY = re.compile(r"(?:\w+_)?SECRET(?:_KEY)?", re.IGNORECASE)


BLOCKS = ("environment", "secrets", "settings")


def sort_env(text: str, imported: str) -> dict[str, Any]:
    """Return the names of an .env file, sorted, without those that the text of an earlier import has."""
    faults = [binding.original for binding in parse_stream(io.StringIO(text)) if binding.error]
    if faults:
        raise AnsibleFilterError(f"line {faults[0].line} is no assignment: write NAME=value")
    values = {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}
    for name in values:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise AnsibleFilterError(f"{name} is no name of an environment variable: remove it from the file")
    schemes = [match[1] for value in values.values() if (match := POSTGRES_URL.match(value))]
    driver = next((scheme for scheme in schemes if "+" in scheme), "postgresql")
    found: dict[str, Any] = {"environment": {}, "secrets": {}, "settings": {}, "driver": driver}
    known = set(re.findall(r"^  (\w+):", imported, re.MULTILINE))
    found["known"] = [name for name in values if name in known]
    for name in [name for name in values if name not in known]:
        value = values[name]
        if expression := provided(name, value, driver):
            found["environment"][name] = f"{{{{ {expression} }}}}"
        else:
            found["secrets" if is_secret(name, value) else "settings"][name] = value
    return found


def provided(name: str, value: str, driver: str) -> str:
    """Return the expression for a value that the platform provides; "" if it provides none."""
    redis = "queue" if QUEUE.search(name) else "cache"
    if scheme := POSTGRES_URL.match(value):
        if scheme[1] == driver and "+" in driver:
            return "database.driver_url"
        plain = "+" not in scheme[1]
        return "database.url" if plain else f"database.url | replace('postgresql:', '{scheme[1]}:', 1)"
    if REDIS_URL.match(value):
        return f"{redis}.url"
    for pattern, fields, thing in (
        (REDIS_NAME, REDIS_FIELDS, redis),
        (POSTGRES_NAME, POSTGRES_FIELDS, "database"),
    ):
        part = pattern.fullmatch(name)
        if part and part[1].upper() in fields:
            return f"{thing}.{fields[part[1].upper()]}"
    if SIGNING_KEY.fullmatch(name) and PLACEHOLDER.fullmatch(value):
        return "service_key"
    return ""


def is_secret(name: str, value: str) -> bool:
    """Return whether a value may be a secret: by a word of its name, or by what it looks like."""
    if not value:
        return False
    words = set(name.upper().split("_"))
    looks = URL_WITH_PASSWORD.match(value) or RANDOM.fullmatch(value) or "\n" in value
    return bool(words & SECRET_WORDS or looks)


def import_text(text: str, service: str, found: Mapping[str, Any]) -> str:
    """Return the text of a service's file of imported variables, with the new names added.

    text: Its present text, "" for a new file. Present lines stay as they are.
    found: What sort_env returns.
    """
    stem = variable_stem(service)
    text = (
        text
        or f"---\n# From an .env file by `make import-env SERVICE={service}`; vault.yml has the secrets.\n"
    )
    for block, lines in (
        ("environment", {name: f'"{value}"' for name, value in found["environment"].items()}),
        ("secrets", {name: f'"{{{{ {stem}_{name} }}}}"' for name in found["secrets"]}),
        ("settings", {name: quoted(value) for name, value in found["settings"].items()}),
    ):
        added = "".join(f"  {name}: {value}\n" for name, value in lines.items())
        header = re.search(rf"^{stem}_{block}:(?: {{}})?\n", text, re.MULTILINE)
        if header and added:
            text = f"{text[: header.start()]}{stem}_{block}:\n{added}{text[header.end() :]}"
        elif not header and re.search(rf"^{stem}_{block}:", text, re.MULTILINE):
            raise AnsibleFilterError(
                f"{stem}_{block} has no lines of its own: write each name on a line below it"
            )
        elif not header:
            text += f"{stem}_{block}:\n{added}" if added else f"{stem}_{block}: {{}}\n"
    return text


def import_secrets(text: str, service: str, found: Mapping[str, Any]) -> str:
    """Return the text of a vault with the new secrets of a service added; present ones stay as they are."""
    names = {f"{variable_stem(service)}_{name}": value for name, value in found["secrets"].items()}
    new = {name: value for name, value in names.items() if not re.search(rf"^{name}:", text, re.MULTILINE)}
    heading = f"# Secrets of the service {service}, from an .env file.\n" if new else ""
    return f"{text}\n{heading}" + "".join(f"{name}: {quoted(value)}\n" for name, value in new.items())


def import_report(found: Mapping[str, Any], service: str, folder: str) -> list[str]:
    """Return lines that say where each name is now, and what the service's entry needs.

    folder: That of the environment's variables, as an operator writes it.
    """
    stem = variable_stem(service)
    lines = {
        f"The platform provides ({folder}/{stem}.yml)": [
            f"{name} ({value.strip('{ }')})" for name, value in found["environment"].items()
        ],
        f"Secrets ({folder}/vault.yml, encrypted)": found["secrets"],
        f"Settings ({folder}/{stem}.yml)": found["settings"],
        "Left as they were by an earlier import": found["known"],
    }
    report = [f"{title}: {', '.join(names)}." for title, names in lines.items() if names]
    used = " ".join(found["environment"].values())
    entry = [f"{key}: true" for key in ("database", "cache", "queue") if f"{key}." in used]
    if "driver_url" in used:
        entry.append(f"database_driver: {found['driver']}")
    entry += [f'{block}: "{{{{ {stem}_{block} }}}}"' for block in BLOCKS]
    return [*report, f"The entry services.{service} needs: {', '.join(entry)}."]


def variable_stem(service: str) -> str:
    """Return the beginning of the names of a service's imported variables."""
    return f"imported_{service.replace('-', '_')}"


def quoted(value: str) -> str:
    """Return a value as YAML in one line, which Ansible takes literally."""
    text = str(yaml.safe_dump(value, default_style='"', width=2**31, allow_unicode=True)).strip()
    return f"!unsafe {text}" if "{{" in value or "{%" in value or "{#" in value else text


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        functions = (sort_env, import_text, import_secrets, import_report)
        return {function.__name__: function for function in functions}
