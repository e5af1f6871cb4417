"""Behaviour of every request: problem details, ids, access log, limits, CORS, metrics."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from secrets import token_hex
from typing import Any

import httpx
import orjson
import pytest
from fastapi.responses import StreamingResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from app.auth import SCOPES, Tokens
from app.errors import UnavailableError
from app.middleware import SECURITY_HEADERS
from app.products.schemas import MAX_BULK_ITEMS
from app.settings import Settings
from tests.app.test_routes import ROUTES

URL = "/api/v1/products"
BULK = "/api/v1/bulk/products"
SIGN_IN = "/api/v1/auth/token"
JSON = {"Content-Type": "application/json"}
WRITES = [("POST", URL), ("PUT", f"{URL}/1"), ("PATCH", f"{URL}/1"), ("POST", BULK), ("POST", SIGN_IN)]


async def longest_pause(request: Awaitable[httpx.Response]) -> tuple[float, httpx.Response]:
    """Return the processor time of the event loop's longest turn during a request, and the response."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begun = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - begun)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    response = await request
    await asyncio.sleep(0)
    watcher.cancel()
    return longest, response


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/", 405),
        ("GET", f"{URL}/", 404),
        ("POST", "/health/live", 405),
        ("POST", "/metrics", 405),
        ("BREW", URL, 405),
        ("GET", f"{URL}/x", 422),
        ("GET", f"{URL}/9000000000000000000", 404),
    ],
)
async def test_every_error_is_a_problem_document(
    client: httpx.AsyncClient, method: str, url: str, status: int
) -> None:
    answer = await client.request(method, url)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["request_id"] == answer.headers["x-request-id"]
    if status == 405:
        assert {"GET", "HEAD"} <= set(answer.headers["allow"].split(", "))


async def test_the_root_names_the_documents(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    for path in answer.json().values():
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("character", ["%0a", "%0d", "%00", "%1b", "%7f", "%c2%85", "%c2%9f"])
async def test_control_characters_in_a_path_are_refused(
    client: httpx.AsyncClient, service: Callable[..., Settings], character: str
) -> None:
    headers = {"Authorization": f"Bearer {Tokens(service()).issue('ann', frozenset(SCOPES))}"}
    for method, path in [*ROUTES, ("GET", "/metrics"), ("GET", "/api/openapi.json")]:
        path = path.replace("{id}", "1")
        for changed in (path + character, path[:4] + character + path[4:], f"{path}/{character}"):
            answer = await client.request(method, changed, headers=headers)
            assert answer.status_code == 400, (method, changed)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert (await client.get("/metrics%c2%a0")).status_code == 404


async def test_a_websocket_with_a_control_character_in_its_path_is_refused(client: httpx.AsyncClient) -> None:
    app = client.app  # type: ignore[attr-defined]
    app.router.routes.append(WebSocketRoute("/private", WebSocket.accept))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    for path, answer in (("/private", "websocket.accept"), ("/private\n", "websocket.close")):
        scope = {"type": "websocket", "path": path, "headers": [], "query_string": b""}
        await app(scope, receive, send)
        assert sent.pop() == answer


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {}, 415),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"Content-Type": "application/jsonp"}, 415),
        (b"{}", JSON | {"Content-Encoding": "gzip"}, 415),
        (b"{}", JSON | {"Content-Encoding": "br, gzip"}, 415),
        (b"", JSON, 400),
        (b"{", JSON, 400),
        (b"{'name': 1}", JSON, 400),
        (b'{"name": NaN}', JSON, 400),
        (b'{"name": 1e}', JSON, 400),
        (b'{"name": "\xff"}', JSON, 400),
        (b'{"name": "\\ud800"}', JSON, 400),
        (b"\xef\xbb\xbf{}", JSON, 400),
        ("{}".encode("utf-16"), JSON, 400),
        ("{}".encode("utf-16-le"), JSON, 400),
        ("{}".encode("utf-32"), JSON, 400),
        (b"[" * 10_000, JSON, 400),
        (b"[]", JSON, 422),
        (b"null", JSON, 422),
        (b'"x"', JSON, 422),
        (b'{"unknown": 1}', JSON, 422),
        (b"{}", {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": "identity"}, 422),
        (b"{}", {"Content-Type": "Application/Vnd.Shop+JSON"}, 422),
    ],
)
async def test_every_route_judges_a_body_alike(
    client: httpx.AsyncClient, writer: dict[str, str], body: bytes, headers: dict[str, str], status: int
) -> None:
    for method, url in WRITES:
        answer = await client.request(method, url, content=body, headers=writer | headers)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), (
            url
        )


@pytest.mark.parametrize(
    ("headers", "name", "value"),
    [
        ({}, "accept", "application/json"),
        (JSON | {"Content-Encoding": "gzip"}, "accept-encoding", "identity"),
    ],
)
async def test_a_415_names_what_is_accepted(
    client: httpx.AsyncClient, writer: dict[str, str], headers: dict[str, str], name: str, value: str
) -> None:
    assert (await client.post(URL, content=b"{}", headers=writer | headers)).headers[name] == value


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
async def test_the_token_is_checked_before_the_body_is_parsed(
    client: httpx.AsyncClient, content_type: str
) -> None:
    for (method, path), scope in ROUTES.items():
        if scope:
            url = path.replace("{id}", "x")
            answer = await client.request(method, url, content=b"{", headers={"Content-Type": content_type})
            assert answer.status_code == 401, (method, path)


REALISTIC = {
    "name": "Lamp, brushed steel, 40 cm, with a dimmer and a cable of 2 m",
    "category": "home/lighting",
}
ITEMS = [REALISTIC | {"price": f"{n % 900}.95", "stock": n % 70, "id": n + 1} for n in range(MAX_BULK_ITEMS)]
LARGE = 2_097_152
HOSTILE = {
    "unknown fields": b"{" + b",".join(b'"%x":0' % n for n in range(95_000)) + b"}",
    "unknown fields of many items": orjson.dumps(
        {"items": [{f"k{m}": 0 for m in range(14)} for _ in range(MAX_BULK_ITEMS)]}
    ),
    "unknown fields of one item": orjson.dumps({"items": [dict.fromkeys(map(str, range(95_000)), 0)]}),
    "empty items": orjson.dumps({"items": [{}] * MAX_BULK_ITEMS}),
    "too many items": b'{"items":[' + b",".join([b"{}"] * (LARGE // 3 - 10)) + b"]}",
    "empty lists": b'{"items":[' + b",".join([b"[]"] * (LARGE // 3 - 10)) + b"]}",
    "lists in objects": b"[" + b",".join([b'{"":[]}'] * (LARGE // 8 - 1)) + b"]",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_no_refused_body_blocks_other_requests(
    client: httpx.AsyncClient, writer: dict[str, str], name: str
) -> None:
    assert len(HOSTILE[name]) <= LARGE
    for method, url in WRITES:
        for token, statuses in ((writer, {422, 413}), ({}, {422, 413} if url == SIGN_IN else {401, 413})):
            request = client.request(method, url, content=HOSTILE[name], headers=token | JSON)
            pause, answer = await longest_pause(request)
            assert answer.status_code in statuses
            assert len(answer.content) < 100_000
            assert pause < 0.1, (method, url)


async def test_a_bulk_write_of_5000_realistic_items_fits_and_blocks_no_other_request(
    client: httpx.AsyncClient, writer: dict[str, str]
) -> None:
    """The longest names fit, too; the edge has the same limit."""
    longest = [{"name": "n" * 200, "category": "c" * 100, "price": "9999999999.99", "stock": 2**31 - 1}]
    created = await client.post(BULK, json={"items": longest * MAX_BULK_ITEMS}, headers=writer)
    assert created.status_code == 200
    items = [item | {"id": product_id} for item, product_id in zip(ITEMS, created.json()["ids"], strict=True)]
    key = {"Idempotency-Key": f"bulk-{token_hex(8)}"}
    body = orjson.dumps({"items": items})
    pause, replaced = await longest_pause(client.post(BULK, content=body, headers=writer | JSON | key))
    assert replaced.json()["updated"] == MAX_BULK_ITEMS
    assert pause < 0.1


async def test_an_unexpected_error_reveals_only_the_request_id(
    client: httpx.AsyncClient, access_lines: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    @client.app.get("/boom")  # type: ignore[attr-defined, untyped-decorator]
    async def boom() -> None:
        raise RuntimeError("the password is hunter2")

    answer = await client.get("/boom")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in answer.text
    assert "RuntimeError" not in answer.text
    assert "hunter2" in caplog.text
    assert access_lines[-1]["status"] == 500
    assert access_lines[-1]["request_id"] == answer.json()["request_id"]


async def test_an_error_after_the_response_started_cuts_the_connection(
    client: httpx.AsyncClient, access_lines: list[dict[str, Any]]
) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("too late")

    @client.app.get("/half")  # type: ignore[attr-defined, untyped-decorator]
    async def route() -> StreamingResponse:
        return StreamingResponse(half())

    with pytest.raises(RuntimeError, match="too late"):
        await client.get("/half")
    assert access_lines[-1]["status"] == 200


async def test_a_disconnected_client_is_logged_and_counted(
    client: httpx.AsyncClient, access_lines: list[dict[str, Any]]
) -> None:
    @client.app.get("/slow")  # type: ignore[attr-defined, untyped-decorator]
    async def slow() -> None:
        await asyncio.sleep(60)

    request = asyncio.ensure_future(client.get("/slow"))
    await asyncio.sleep(0.05)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert access_lines[-1]["status"] == 499
    assert "http_requests_in_flight 1.0" in (await client.get("/metrics")).text


@pytest.mark.parametrize("sent_id", ["abcd1234", "A.b_c-0123456789", "x" * 64])
async def test_a_well_formed_request_id_is_kept(client: httpx.AsyncClient, sent_id: str) -> None:
    answer = await client.get("/health/live", headers={"X-Request-ID": sent_id})
    assert answer.headers["x-request-id"] == sent_id


@pytest.mark.parametrize(
    "sent_id", ["", "short", "x" * 65, 'a"b-injected', "line\\nbreak", "sp ace-space", "ümlaut-ü"]
)
async def test_any_other_request_id_is_replaced(client: httpx.AsyncClient, sent_id: str) -> None:
    answer = await client.get("/nowhere", headers=[(b"X-Request-ID", sent_id.encode())])
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_the_trace_id_becomes_the_request_id(
    client: httpx.AsyncClient, access_lines: list[dict[str, Any]]
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    header = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert (await client.get(URL, headers=header)).headers["x-request-id"] == trace
    assert access_lines[-1]["trace_id"] == trace
    await client.get(URL, headers=header | {"X-Request-ID": "my-own-id"})
    assert (access_lines[-1]["request_id"], access_lines[-1]["trace_id"]) == ("my-own-id", trace)
    for bad in (f"ff-{trace}-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01", "00-x-y-01"):
        answer = await client.get(URL, headers={"traceparent": bad})
        assert answer.headers["x-request-id"] != trace
        assert access_lines[-1]["trace_id"] is None


async def test_an_access_line_names_user_client_route_and_status(
    client: httpx.AsyncClient, writer: dict[str, str], access_lines: list[dict[str, Any]]
) -> None:
    await client.delete(
        f"{URL}/9000000000000000000?token=secret",
        headers=writer | {"X-Forwarded-For": "192.0.2.8, 192.0.2.7"},
    )
    line = access_lines[-1]
    assert line["method"] == "DELETE"
    assert line["route"] == URL + "/{id}"
    assert line["status"] == 404
    assert line["user"] == "ann"
    assert line["client"] == "192.0.2.7"
    assert line["duration_ms"] > 0
    assert "secret" not in str(line)
    assert writer["Authorization"].split()[1] not in str(line)
    await client.get(URL, headers={"X-Forwarded-For": 'evil", "user": "root'})
    assert access_lines[-1]["client"] == "127.0.0.1"
    assert access_lines[-1]["user"] is None


@pytest.mark.parametrize(("path", "status"), [("/api/v1/nothing", 403), ("/api/v1/socket", 101)])
async def test_a_websocket_request_is_logged_and_counted(
    client: httpx.AsyncClient, access_lines: list[dict[str, Any]], path: str, status: int
) -> None:
    async def accept(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    app = client.app  # type: ignore[attr-defined]
    app.router.routes.append(WebSocketRoute("/api/v1/socket", accept))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    headers = [(b"x-forwarded-for", b"192.0.2.7"), (b"x-request-id", b"socket-1")]
    await app({"type": "websocket", "path": path, "headers": headers, "query_string": b""}, receive, send)
    assert sent[-1] == "websocket.close"
    line = access_lines[-1]
    assert (line["request_id"], line["client"]) == ("socket-1", "192.0.2.7")
    assert (line["method"], line["status"]) == ("GET", status)
    metrics = (await client.get("/metrics")).text
    assert f'http_requests_total{{method="GET",route="{line["route"]}",status="{status}"}} 1.0' in metrics
    assert "http_requests_in_flight 1.0" in metrics


async def test_health_and_metrics_write_no_access_line(
    client: httpx.AsyncClient, access_lines: list[dict[str, Any]]
) -> None:
    for url in ("/health/live", "/health/ready", "/metrics"):
        assert (await client.get(url)).status_code == 200
    assert access_lines == []


async def test_a_body_over_the_limit_is_refused(start: Callable[..., Any], writer: dict[str, str]) -> None:
    client = await start(MAX_BODY_BYTES="1000")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 10

    for body in (b"x" * 1001, chunks()):
        answer = await client.post(URL, content=body, headers=writer | {"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"]
    fits = {"name": "x" * 200, "category": "c", "price": "1"}
    assert (await client.post(URL, json=fits, headers=writer)).status_code == 201


async def test_cors_allows_configured_origins_only(start: Callable[..., Any]) -> None:
    client = await start(CORS_ORIGINS="https://shop.example")
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert (await client.options(URL, headers=preflight)).headers["access-control-allow-origin"] == preflight[
        "Origin"
    ]
    answer = await client.get(f"{URL}/x", headers={"Origin": "https://shop.example"})
    assert answer.status_code == 422
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    answer = await client.get(URL, headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    refused = await client.options(URL, headers=preflight | {"Origin": "https://evil.example"})
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    assert "access-control-allow-origin" not in refused.headers
    assert refused.json()["request_id"] == refused.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
async def test_cors_allows_every_header_of_the_api(start: Callable[..., Any], method: str) -> None:
    origin = {"Origin": "https://shop.example"}
    client = await start(CORS_ORIGINS=origin["Origin"], CORS_ALLOW_CREDENTIALS="true")
    names = "authorization,content-type,idempotency-key,if-match,if-none-match"
    asked = {
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": f"{names},traceparent,tracestate,x-request-id",
    }
    assert (await client.options(URL, headers=origin | asked)).status_code == 200
    asked["Access-Control-Request-Headers"] += ",x-other"
    assert (await client.options(URL, headers=origin | asked)).status_code == 400
    answer = await client.get(URL, headers=origin)
    assert answer.headers["access-control-allow-credentials"] == "true"
    shown = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert set(shown) == {"etag", "idempotency-replayed", "location", "retry-after", "x-request-id"}


@pytest.mark.parametrize("url", ["/health/live", "/health/ready", URL, "/nowhere", f"{URL}/0"])
async def test_head_equals_get_without_the_body(
    client: httpx.AsyncClient, access_lines: list[dict[str, Any]], url: str
) -> None:
    """Uptime checks use HEAD."""
    whole, head = await client.get(url), await client.head(url)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    own = {"x-request-id"}
    assert {n: v for n, v in head.headers.items() if n not in own} == {
        n: v for n, v in whole.headers.items() if n not in own
    }
    if not url.startswith("/health"):
        assert [line["method"] for line in access_lines] == ["GET", "HEAD"]
        assert access_lines[-1]["bytes"] == 0


async def test_error_responses_have_cors_headers(start: Callable[..., Any]) -> None:
    client = await start(CORS_ORIGINS="https://shop.example", REQUEST_TIMEOUT="0.5")

    @client.app.get("/boom")  # type: ignore[untyped-decorator]
    async def boom(seconds: float) -> None:
        await asyncio.sleep(seconds)
        raise TimeoutError

    for seconds, status in ((0, 500), (5, 503)):
        answer = await client.get(f"/boom?seconds={seconds}", headers={"Origin": "https://shop.example"})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["retry-after"] == "5"


async def test_a_request_timeout_releases_its_database_connection(start: Callable[..., Any]) -> None:
    client = await start(REQUEST_TIMEOUT="0.2", DATABASE_POOL_SIZE="1", REDIS_URL="")
    database = client.app.state.database

    @client.app.get("/slow")  # type: ignore[untyped-decorator]
    async def slow() -> None:
        await database.fetch("slow", "SELECT pg_sleep(3)")

    started = time.monotonic()
    assert (await client.get("/slow")).status_code == 503
    assert (await client.get(URL)).status_code == 200
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("method", "url"), [("GET", URL), ("GET", "/nowhere"), ("BREW", URL), ("POST", URL)])
async def test_every_response_has_the_security_headers(
    client: httpx.AsyncClient, start: Callable[..., Any], method: str, url: str
) -> None:
    answer = await client.request(method, url)
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.get_list(name) == [value]
    debugging = await start(ENVIRONMENT="testing", DEBUG="true")
    assert "content-security-policy" not in (await debugging.request(method, url)).headers


async def test_random_paths_and_methods_add_no_time_series(client: httpx.AsyncClient) -> None:
    async def series() -> int:
        return sum(not line.startswith("#") for line in (await client.get("/metrics")).text.splitlines())

    await client.get("/nowhere")
    await client.request("BREW", "/nowhere")
    await client.request("BREW", URL)
    await client.get("/metrics")
    before = await series()
    for number in range(200):
        await client.get(f"/random/{number}")
        await client.request(f"M{number}", URL)
    assert await series() == before


async def test_metrics_describe_the_service(client: httpx.AsyncClient, writer: dict[str, str]) -> None:
    created = await client.post(URL, json={"name": "n", "category": "c", "price": "1"}, headers=writer)
    for _ in range(3):
        await client.get(created.headers["location"])
    exposed = (await client.get("/metrics")).text
    for line in (
        'http_requests_total{method="GET",route="/api/v1/products/{id}",status="200"} 3.0',
        'http_requests_total{method="POST",route="/api/v1/products",status="201"} 1.0',
        'cache_requests_total{operation="read",result="hit"} 2.0',
        'cache_requests_total{operation="read",result="miss"} 1.0',
        'database_query_duration_seconds_count{query="products.read"} 1.0',
        'database_pool_connections{state="used"}',
        "cache_up 1.0",
        'http_request_bytes_total{method="POST",route="/api/v1/products"} 39.0',
    ):
        assert line in exposed
    assert re.search('app_build_info{python="3[^"]*",release="test",version="[^"]+"} 1.0', exposed)
    assert "app_resident_memory_bytes" in exposed
    sent = re.search(r'http_response_bytes_total{method="GET",route="/api/v1/products/{id}"} (\S+)', exposed)
    assert sent is not None
    assert float(sent[1]) == 3 * len(created.content)


async def test_unavailable_sets_retry_after(client: httpx.AsyncClient) -> None:
    @client.app.get("/later")  # type: ignore[attr-defined, untyped-decorator]
    async def later() -> None:
        raise UnavailableError("Not now.")

    answer = await client.get("/later")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


async def test_interactive_pages_need_debug(start: Callable[..., Any]) -> None:
    client = await start()
    assert (await client.get("/api/docs")).status_code == 404
    client = await start(ENVIRONMENT="development", DEBUG="1")
    assert (await client.get("/api/docs")).status_code == 200
