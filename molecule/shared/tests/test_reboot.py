"""After a reboot the service runs, its data exist and no unit has failed. This test runs last."""

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


def test_a_product_survives_a_reboot(
    host: Host, variables: dict[str, Any], labctl: Callable[[str, str], None]
) -> None:
    products = f"https://{variables['nginx_server_names'][0]}/api/v1/products"
    ca = host.file(variables["nginx_ca_certificate"]).content_string
    token = host.check_output(f"{variables['app_name']}-manage token --subject verify")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    context = ssl.create_default_context(cadata=ca)

    def send(url: str, method: str = "GET", data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
            return json.loads(answer.read() or "null")

    def boot_time() -> str:
        return str(host.check_output("systemctl show --property=UserspaceTimestampMonotonic"))

    product = {"name": f"verify {uuid.uuid4()}", "category": "verify", "price": "12.34", "stock": 5}
    written = send(products, "POST", product)
    url = f"{products}/{written['id']}"
    before = boot_time()

    deadline = time.monotonic() + 30
    labctl("restart", host.backend.hostname)
    while True:
        try:
            read = send(url)
            break
        except OSError:
            assert time.monotonic() < deadline, "no response within 30 s"
            time.sleep(0.1)
    assert time.monotonic() < deadline
    assert read == written
    assert boot_time() != before
    state = host.run("systemctl is-system-running --wait").stdout.strip()
    assert (state, host.check_output("systemctl --failed --no-legend --plain")) == ("running", "")
    assert "policy drop" in host.check_output("nft list chain inet fastmetal input")
    send(url, "DELETE")
