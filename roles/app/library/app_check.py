#!/usr/bin/python
"""Ask the service, from outside through TLS or on its socket, whether a release works."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: app_check
short_description: Check a release as its clients meet it
description:
  - Sends requests to every edge in turn and compares status and release with what is expected.
  - In a path, C({location}) stands for the last C(Location) that was answered.
author: Fastmetal
options:
  edges: {type: dict, default: {}, description: "Addresses of the edges, each with the name clients use."}
  socket: {type: path, description: "A unix socket of the host to ask instead of edges."}
  authority: {type: str, default: "", description: "Certificate trusted besides the system's own."}
  release: {type: str, required: true, description: "The release that must answer."}
  header: {type: str, required: true, description: "The header that names it; empty is not looked at."}
  token: {type: str, default: "", description: "A bearer token for the requests."}
  requests:
    description: What to ask.
    type: list
    elements: dict
    required: true
    suboptions:
      method: {type: str, default: GET, description: "The method."}
      path: {type: str, required: true, description: "The path."}
      status: {type: int, default: 200, description: "The status to be answered."}
      body: {type: dict, description: "The JSON to send."}
"""

RETURN = r""" # """

EXAMPLES = r"""
- name: Check the release
  app_check:
    edges: {192.0.2.10: api.example.com}
    authority: "{{ tls_ca_certificate }}"
    release: 1.0-0123456789ab
    header: X-Release
    requests:
      - path: /health/ready
"""


SWITCH_SECONDS = 5


class OtherReleaseError(Exception):
    """Another release answered."""


def connect(edge: str, name: str, authority: str) -> socket.socket:
    """Connect to an edge, or to a socket of this host, which has no name."""
    if not name:
        local = socket.socket(socket.AF_UNIX)
        local.settimeout(10)
        local.connect(edge)
        return local
    context = ssl.create_default_context(cadata=authority)
    context.load_default_certs()
    return context.wrap_socket(socket.create_connection((edge, 443), timeout=10), server_hostname=name)


def ask(edge: str, name: str, params: dict[str, Any]) -> None:
    """Send every request to one edge; raise ValueError with what was wrong."""
    location = ""
    for wanted in params["requests"]:
        path = wanted["path"].replace("{location}", location)
        connection = http.client.HTTPConnection(name or "localhost")
        connection.sock = connect(edge, name, params["authority"])
        headers = {"Authorization": f"Bearer {params['token']}"} if params["token"] else {}
        body = None
        if wanted["body"] is not None:
            body, headers["Content-Type"] = json.dumps(wanted["body"]), "application/json"
        # It may have answered, and hung up, before it was told all; its answer counts.
        with contextlib.suppress(BrokenPipeError):
            connection.request(wanted["method"], path, body, headers)
        answer = connection.getresponse()
        text = answer.read(200).decode(errors="replace")
        connection.close()
        release = answer.getheader(params["header"], "") if params["header"] else params["release"]
        if release and release != params["release"]:
            raise OtherReleaseError(f"{wanted['method']} {path} was answered by {release}")
        if answer.status != wanted["status"]:
            raise ValueError(f"{wanted['method']} {path} was answered {answer.status}: {text}")
        if not release:
            raise ValueError(f"{wanted['method']} {path} was answered by no release")
        location = answer.getheader("Location", location)


def ask_after_switch(edge: str, name: str, params: dict[str, Any]) -> None:
    """Ask, and again while the old release has not let go of the socket yet."""
    deadline = time.monotonic() + SWITCH_SECONDS
    while True:
        try:
            return ask(edge, name, params)
        except OtherReleaseError as error:
            if time.monotonic() > deadline:
                raise ValueError(str(error)) from None
            time.sleep(0.1)


def main() -> None:
    request = {
        "method": {"type": "str", "default": "GET"},
        "path": {"type": "str", "required": True},
        "status": {"type": "int", "default": 200},
        "body": {"type": "dict"},
    }
    module = AnsibleModule(
        argument_spec={
            "edges": {"type": "dict", "default": {}},
            "socket": {"type": "path"},
            "authority": {"type": "str", "default": ""},
            "release": {"type": "str", "required": True},
            "header": {"type": "str", "required": True},
            "token": {"type": "str", "default": "", "no_log": True},
            "requests": {"type": "list", "elements": "dict", "required": True, "options": request},
        },
        supports_check_mode=True,
    )
    asked = {module.params["socket"]: ""} if module.params["socket"] else module.params["edges"]
    for edge, name in asked.items():
        try:
            ask_after_switch(edge, name, module.params)
        except (OSError, ValueError, http.client.HTTPException) as error:
            where = f"The check from outside failed on {edge}" if name else "The release's check failed"
            module.fail_json(msg=f"{where}: {error}.")
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
