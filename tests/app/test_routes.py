"""Every route of the OpenAPI document, and the scope that it requires."""

from collections.abc import Callable
from secrets import token_hex
from typing import Any

import httpx
import pytest

from app.auth import CLEAR_CACHE, READ_OPERATIONS, WRITE_PRODUCTS
from tests.app.conftest import sign_in

PRODUCTS = "/api/v1/products"
# Every operation and its scope. Add a new route here.
ROUTES: dict[tuple[str, str], str | None] = {
    ("GET", PRODUCTS): None,
    ("POST", PRODUCTS): WRITE_PRODUCTS,
    ("POST", "/api/v1/bulk/products"): WRITE_PRODUCTS,
    ("GET", PRODUCTS + "/{id}"): None,
    ("PUT", PRODUCTS + "/{id}"): WRITE_PRODUCTS,
    ("PATCH", PRODUCTS + "/{id}"): WRITE_PRODUCTS,
    ("DELETE", PRODUCTS + "/{id}"): WRITE_PRODUCTS,
    ("DELETE", PRODUCTS + "/{id}/cache"): CLEAR_CACHE,
    ("POST", "/api/v1/auth/token"): None,
    ("GET", "/health"): None,
    ("GET", "/health/live"): None,
    ("GET", "/health/ready"): None,
    ("GET", "/health/detail"): READ_OPERATIONS,
}
METHODS = {"GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS"}


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


async def test_openapi_lists_every_route_with_scope_and_errors(client: httpx.AsyncClient) -> None:
    listed = operations((await client.get("/api/openapi.json")).json())
    assert set(listed) == set(ROUTES)
    for (method, path), operation in listed.items():
        scopes = [scope for entry in operation.get("security", []) for scope in entry["HTTPBearer"]]
        required = ROUTES[method, path]
        assert scopes == ([required] if required else []), path
        if path.startswith("/api/"):
            assert "application/problem+json" in operation["responses"]["422"]["content"]
        if required:
            assert {"401", "403"} <= set(operation["responses"])


@pytest.mark.parametrize("scope", [None, "", WRITE_PRODUCTS, READ_OPERATIONS, CLEAR_CACHE])
async def test_scopes_decide_which_routes_a_user_may_call(
    client: httpx.AsyncClient, scope: str | None
) -> None:
    headers = {} if scope is None else await sign_in(client, *scope.split())
    for (method, path), needed in ROUTES.items():
        answer = await client.request(method, path.replace("{id}", "9000000000000000000"), headers=headers)
        if needed is None:
            assert answer.status_code not in (401, 403), path
        elif scope is None:
            assert answer.status_code == 401, path
        elif needed != scope:
            assert answer.status_code == 403, path
        else:
            assert answer.status_code in (200, 204, 404, 415), path
    for path in {path for _, path in ROUTES}:
        listed = {method for method, other in ROUTES if other == path}
        if "GET" in listed:
            listed.add("HEAD")
        for method in METHODS - listed:
            answer = await client.request(method, path.replace("{id}", "1"), headers=headers)
            assert answer.status_code == 405, (method, path)
            assert answer.headers["allow"] == ", ".join(sorted(listed))


@pytest.mark.parametrize(("prefix", "documents"), [("/shop/v2", "/shop"), ("/v2", ""), ("", "")])
async def test_every_route_follows_the_prefix(
    start: Callable[..., Any], writer: dict[str, str], prefix: str, documents: str
) -> None:
    client = await start(
        API_PREFIX=prefix, APP_NAME="Shop", ENVIRONMENT="testing", DEBUG="true", LOG_LEVEL="INFO"
    )
    document = (await client.get(f"{documents}/openapi.json")).json()
    assert document["info"]["title"] == "Shop"
    assert set(operations(document)) == {
        (method, path.replace("/api/v1", prefix, 1)) for method, path in ROUTES
    }
    assert f'"{documents}/openapi.json"' in (await client.get(f"{documents}/docs")).text.replace("'", '"')
    product = {"name": "Lamp", "category": "light", "price": "1"}
    key = {"Idempotency-Key": f"prefix-{token_hex(8)}"}
    for _ in range(2):
        created = await client.post(f"{prefix}/products", json=product, headers=writer | key)
        assert created.headers["location"] == f"{prefix}/products/{created.json()['id']}"
        assert (await client.get(created.headers["location"])).json() == created.json()
    await sign_in(client, WRITE_PRODUCTS, url=f"{prefix}/auth/token")
    metrics = (await client.get("/metrics")).text
    assert f'route="{prefix}/products/{{id}}",status="200"}} 2.0' in metrics
    refused = await client.put(f"{prefix}/products", headers=writer)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")
    for path in (PRODUCTS, "/api/openapi.json"):
        assert (await client.get(path)).status_code == 404
    # Another worker has the routes of its own settings.
    assert (await (await start(API_PREFIX="/api/v1", DEBUG="false")).get(PRODUCTS)).status_code == 200
