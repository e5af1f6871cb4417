"""What outlives a reboot: the service, its data, and a host without failed units. Runs last."""

import json
import ssl
import time
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.on("edge_beside_app", "postgres")


def test_a_product_outlives_a_reboot(
    host: Host, variables: dict[str, Any], labctl: Callable[[str, str], None]
) -> None:
    products = f"https://{variables['nginx_server_names'][0]}/api/v1/products"
    authority = host.file(variables["nginx_ca_certificate"]).content_string
    token = host.check_output(f"{variables['app_name']}-manage token --subject verify")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    context = ssl.create_default_context(cadata=authority)

    def ask(url: str, method: str = "GET", data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
            return json.loads(answer.read() or "null")

    def booted() -> str:
        return str(host.check_output("systemctl show --property=UserspaceTimestampMonotonic"))

    product = {"name": f"verify {uuid.uuid4()}", "category": "verify", "price": "12.34", "stock": 5}
    written = ask(products, "POST", product)
    url = f"{products}/{written['id']}"
    before = booted()

    deadline = time.monotonic() + 30
    labctl("restart", host.backend.hostname)
    while True:
        try:
            read = ask(url)
            break
        except OSError:
            assert time.monotonic() < deadline, "no answer within 30 s"
            time.sleep(0.1)
    assert time.monotonic() < deadline
    assert read == written
    assert booted() != before
    assert host.check_output("systemctl is-system-running --wait") == "running"
    ask(url, "DELETE")
