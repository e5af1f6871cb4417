"""The products API, from HTTP to rows in Postgres."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from io import BytesIO
from secrets import token_hex
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from app.auth import WRITE_PRODUCTS
from app.db import create_engine
from app.idempotency import IdempotencyKey
from app.main import create_app
from app.products.repository import FIELDS, list_statement
from app.products.schemas import ListQuery
from app.settings import Settings

URL = "/api/v1/products"
BULK = "/api/v1/bulk/products"


async def create(client: httpx.AsyncClient, writer: dict[str, str], **fields: Any) -> dict[str, Any]:
    product = {"name": "Lamp", "category": "light", "price": "19.90", "stock": 3} | fields
    answer = await client.post(URL, json=product, headers=writer)
    assert answer.status_code == 201, answer.text
    result: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{URL}/{result['id']}"
    return result


async def test_create_read_replace_change_delete(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    created = await create(client, writer, name="  Lamp ", category=category)
    address = f"{URL}/{created['id']}"
    assert created == {
        "id": created["id"],
        "name": "Lamp",
        "category": category,
        "price": "19.90",
        "stock": 3,
    }
    assert (await client.get(address)).json() == created

    replaced = await client.put(
        address, json={"name": "Desk", "category": category, "price": 250}, headers=writer
    )
    assert replaced.status_code == 200
    assert replaced.json() == created | {"name": "Desk", "price": "250.00", "stock": 0}
    assert (await client.get(address)).json() == replaced.json()

    changed = await client.patch(address, json={"stock": 7}, headers=writer)
    assert changed.json() == replaced.json() | {"stock": 7}
    assert (await client.get(address)).json() == changed.json()

    assert (await client.delete(address, headers=writer)).status_code == 204
    for answer in (
        await client.get(address),
        await client.delete(address, headers=writer),
        await client.patch(address, json={"stock": 1}, headers=writer),
    ):
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_write_is_committed_before_the_response_is_sent(
    service: Callable[..., Settings], writer: dict[str, str], category: str
) -> None:
    """Another connection sees the row when the response starts; httpx returns only after the response."""
    app = create_app(service(), lambda _: None)
    seen: list[tuple[str, str]] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def look(message: Message) -> None:
            if message["type"] == "http.response.start":
                rows = "SELECT name, price::text FROM products WHERE category = :category"
                async with app.state.database.engine.connect() as connection:
                    seen.extend(map(tuple, await connection.execute(text(rows), {"category": category})))
            await send(message)

        await app(scope, receive, look)

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(watched), base_url="http://test") as client,
    ):
        created = await create(client, writer, category=category, price="0.10")
        await client.patch(f"{URL}/{created['id']}", json={"price": "9999999999.99"}, headers=writer)
    assert seen == [("Lamp", "0.10"), ("Lamp", "9999999999.99")]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": " "}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "line\nbreak"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"category": None}, "category"),
        ({"price": "-0.01"}, "price"),
        ({"price": "0.001"}, "price"),
        ({"price": "10000000000"}, "price"),
        ({"price": "NaN"}, "price"),
        ({"price": "Infinity"}, "price"),
        ({"price": ""}, "price"),
        ({"price": "1e1"}, "price"),
        ({"price": " 1"}, "price"),
        ({"price": None}, "price"),
        ({"stock": "1"}, "stock"),
        ({"stock": -1}, "stock"),
        ({"stock": 2**31}, "stock"),
        ({"stock": 1.5}, "stock"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_an_invalid_field_is_named(
    client: httpx.AsyncClient, writer: dict[str, str], fields: dict[str, Any], field: str
) -> None:
    product = {"name": "Lamp", "category": "light", "price": "1", "stock": 0} | fields
    for answer in (
        await client.post(URL, json=product, headers=writer),
        await client.put(f"{URL}/1", json=product, headers=writer),
        await client.patch(f"{URL}/1", json=fields, headers=writer),
    ):
        assert answer.status_code == 422
        assert [fault["field"].split(".")[0] for fault in answer.json()["errors"]] in ([field], [""])


async def test_an_incomplete_body_is_refused(
    client: httpx.AsyncClient, writer: dict[str, str], access_lines: list[dict[str, Any]]
) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b'{"name":'
        raise ClientDisconnect

    await client.post(URL, content=cut(), headers=writer)
    assert access_lines[-1]["status"] == 400


async def test_an_empty_change_is_refused(client: httpx.AsyncClient, writer: dict[str, str]) -> None:
    answer = await client.patch(f"{URL}/1", json={}, headers=writer)
    assert answer.status_code == 422


async def test_a_list_of_one_category_has_pages(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    created = [await create(client, writer, category=category, name=f"n{number}") for number in range(5)]
    await create(client, writer, category=category + "x")
    seen = []
    for page, has_next in ((1, True), (2, True), (3, False), (4, False)):
        answer = await client.get(URL, params={"category": category, "page": page, "page_size": 2})
        body = answer.json()
        assert (body["page"], body["page_size"], body["has_next"]) == (page, 2, has_next)
        seen += body["items"]
    assert seen == created
    everything = (await client.get(URL)).json()
    assert len(everything["items"]) <= 20
    assert everything["page"] == 1


@pytest.mark.parametrize(
    "query",
    [
        *("page=0", "page=51", "page=x", "page=1_0", "page=%2B1", "page=1.0", "page=%201"),
        *("page_size=0", "page_size=101", "page_size=1_0", "category=", "category=a%00b", "min_price=1_0"),
    ],
)
async def test_page_parameters_are_bounded(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"{URL}?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["in"] == "query"


@pytest.mark.parametrize(
    "product_id", ["0", "-1", "x", "9223372036854775808", "1_0", "+1", "01", "1.0", "%201", "1%20", "%D9%A1"]
)
async def test_an_invalid_id_is_refused(client: httpx.AsyncClient, product_id: str) -> None:
    assert (await client.get(f"{URL}/{product_id}")).status_code == 422


async def test_a_write_is_seen_by_the_next_read_on_every_worker(
    start: Callable[..., Any], writer: dict[str, str], category: str
) -> None:
    first, second = await start(), await start()
    created = await create(first, writer, category=category)
    address = f"{URL}/{created['id']}"
    for stock in range(1, 30):
        readers = [asyncio.ensure_future(worker.get(address)) for worker in (first, second) * 3]
        changed = await (first, second)[stock % 2].patch(address, json={"stock": stock}, headers=writer)
        assert changed.json()["stock"] == stock
        for worker in (first, second):
            assert (await worker.get(address)).json()["stock"] == stock
        await asyncio.gather(*readers)
    assert (await first.delete(address, headers=writer)).status_code == 204
    assert (await second.get(address)).status_code == 404


async def test_concurrent_changes_lose_no_update(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    created = await create(client, writer, category=category, stock=0)
    answers = await asyncio.gather(
        *(client.patch(f"{URL}/{created['id']}", json={"stock": n}, headers=writer) for n in range(20)),
        *(client.patch(f"{URL}/{created['id']}", json={"name": f"n{n}"}, headers=writer) for n in range(20)),
    )
    assert {answer.status_code for answer in answers} == {200}
    final = (await client.get(f"{URL}/{created['id']}")).json()
    assert final in [answer.json() for answer in answers]


async def test_if_none_match_answers_304_for_a_current_copy(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    created = await create(client, writer, category=category)
    address = f"{URL}/{created['id']}"
    for url in (address, f"{URL}?category={category}"):
        first = await client.get(url)
        tag = first.headers["etag"]
        # A compressing proxy makes the tag weak; it still stands for the same bytes.
        for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            again = await client.get(url, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert (await client.get(url, headers={"If-None-Match": '"x"'})).content == first.content
    changed = await client.patch(address, json={"stock": 9}, headers=writer)
    assert (await client.get(address, headers={"If-None-Match": tag})).status_code == 200
    assert (await client.get(address)).headers["etag"] == changed.headers["etag"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_if_match_refuses_a_change_of_a_stale_copy(
    client: httpx.AsyncClient, writer: dict[str, str], category: str, method: str
) -> None:
    created = await create(client, writer, category=category)
    address = f"{URL}/{created['id']}"
    product = {"name": "Desk", "category": category, "price": "1"}
    tag = (await client.get(address)).headers["etag"]
    await client.patch(address, json={"stock": 4}, headers=writer)
    refused = await client.request(method, address, json=product, headers=writer | {"If-Match": tag})
    assert refused.status_code == 412
    assert refused.headers["content-type"] == "application/problem+json"
    current = (await client.get(address)).headers["etag"]
    allowed = await client.request(
        method, address, json=product, headers=writer | {"If-Match": f"W/{current}"}
    )
    assert allowed.status_code in (200, 204)
    gone = await client.request(
        method, f"{URL}/9000000000000000000", json=product, headers=writer | {"If-Match": "*"}
    )
    assert gone.status_code == 404


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_if_none_match_refuses_a_change_of_an_existing_product(
    client: httpx.AsyncClient, writer: dict[str, str], category: str, method: str
) -> None:
    created = await create(client, writer, category=category)
    address = f"{URL}/{created['id']}"
    product = {"name": "Desk", "category": category, "price": "1"}
    tag = (await client.get(address)).headers["etag"]

    async def change(*lines: tuple[str, str]) -> int:
        answer = await client.request(method, address, json=product, headers=[*writer.items(), *lines])
        return answer.status_code

    assert await change(("If-None-Match", "*")) == 412
    assert await change(("If-None-Match", '"x"'), ("If-None-Match", tag)) == 412
    assert (await client.get(address)).json() == created
    assert await change(("If-None-Match", '"x"'), ("If-Match", '"x"'), ("If-Match", tag)) in (200, 204)


async def test_if_match_admits_one_of_many_concurrent_changes(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    created = await create(client, writer, category=category)
    address = f"{URL}/{created['id']}"
    tag = (await client.get(address)).headers["etag"]
    answers = await asyncio.gather(
        *(
            client.patch(address, json={"stock": n}, headers=writer | {"If-Match": tag})
            for n in range(100, 120)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 19


async def test_a_retried_post_with_an_idempotency_key_writes_once(
    start: Callable[..., Any], writer: dict[str, str], category: str
) -> None:
    workers = await start(), await start()
    product = {"name": "Lamp", "category": category, "price": "19.90"}
    key = {"Idempotency-Key": f"order-{token_hex(8)}"}
    answers = await asyncio.gather(
        *(workers[n % 2].post(URL, json=product, headers=writer | key) for n in range(20))
    )
    assert {(answer.status_code, answer.content, answer.headers["location"]) for answer in answers} == {
        (201, answers[0].content, answers[0].headers["location"])
    }
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    listed = (await workers[0].get(URL, params={"category": category})).json()
    assert len(listed["items"]) == 1
    # The same key with another request, and from another owner.
    other = await workers[0].post(URL, json=product | {"stock": 1}, headers=writer | key)
    assert other.status_code == 409
    bob = {"Authorization": "Bearer " + workers[0].app.state.tokens.issue("bob", frozenset({WRITE_PRODUCTS}))}
    assert "idempotency-replayed" not in (await workers[0].post(URL, json=product, headers=bob | key)).headers
    for bad in ("short", "x" * 129, "sp ace-space"):
        answer = await workers[0].post(URL, json=product, headers=writer | {"Idempotency-Key": bad})
        assert answer.status_code == 422


async def test_expired_idempotency_keys_are_purged(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    keys = client.app.state.idempotency  # type: ignore[attr-defined]
    product = {"name": "Lamp", "category": category, "price": "1"}
    key = {"Idempotency-Key": f"order-{token_hex(8)}"}
    first = await client.post(URL, json=product, headers=writer | key)
    await keys.purge()
    assert (await client.post(URL, json=product, headers=writer | key)).content == first.content
    expire = (
        update(IdempotencyKey)
        .where(IdempotencyKey.key == key["Idempotency-Key"])
        .values(created_at=IdempotencyKey.created_at - timedelta(days=2))
    )
    await keys._database.with_session("test", lambda session: session.execute(expire))
    batches = 0

    async def count() -> None:
        nonlocal batches
        batches += 1

    assert await keys.purge(count) >= 1
    assert batches >= 1
    assert (await client.post(URL, json=product, headers=writer | key)).content != first.content


async def test_a_list_is_filtered(client: httpx.AsyncClient, writer: dict[str, str], category: str) -> None:
    for price in range(1, 7):
        await create(client, writer, category=category, price=f"{price}.50", stock=price % 2)
    for query, prices in (
        ("min_price=3", ["3.50", "4.50", "5.50", "6.50"]),
        ("max_price=2.50", ["1.50", "2.50"]),
        ("min_price=2&max_price=5&in_stock=false", ["2.50", "4.50"]),
        ("in_stock=true&sort=-price", ["5.50", "3.50", "1.50"]),
    ):
        answer = await client.get(f"{URL}?category={category}&{query}")
        assert [item["price"] for item in answer.json()["items"]] == prices, query


async def test_a_list_has_a_total_on_request(
    client: httpx.AsyncClient,
    writer: dict[str, str],
    category: str,
    service: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = [{"name": f"n{n}", "category": category, "price": n, "stock": n % 2} for n in range(30)]
    assert (await client.post(BULK, json={"items": items}, headers=writer)).status_code == 200
    engine = create_engine(service(), owner=True)
    async with engine.begin() as connection:
        await connection.execute(text("ANALYZE products"))
    await engine.dispose()
    query: dict[str, Any] = {"category": category, "min_price": "10", "in_stock": "true", "page_size": 4}

    async def total(kind: str, **more: Any) -> Any:
        answer = await client.get(URL, params=query | more | {"total": kind})
        return answer.json()["total"]

    assert "total" not in (await client.get(URL, params=query)).json()
    after = (await client.get(URL, params=query)).json()["next"]
    for more in ({}, {"after": after}, {"page": 3}, {"page": 50}):
        assert await total("exact", **more) == {"value": 10, "kind": "exact"}
    estimated = await total("estimated")
    assert estimated["kind"] == "estimated"
    assert 3 <= estimated["value"] <= 30
    monkeypatch.setattr("app.products.repository.MAX_COUNT_COST", 0)
    assert await total("exact") == estimated
    assert (await client.get(URL, params={"total": "all"})).status_code == 422


@pytest.mark.parametrize("sort", ["id", "-id", "price", "-price"])
async def test_cursors_lead_through_a_sorted_list(
    client: httpx.AsyncClient, writer: dict[str, str], category: str, sort: str
) -> None:
    created = [await create(client, writer, category=category, price=str(n % 3 + 1)) for n in range(8)]
    seen: list[dict[str, Any]] = []
    after = None
    for size in (3, 3, 2):
        query: dict[str, Any] = {"category": category, "sort": sort, "page_size": 3}
        query |= {"after": after} if after else {}
        body = (await client.get(URL, params=query)).json()
        assert len(body["items"]) == size
        seen += body["items"]
        after = body["next"]
        assert (after is None) == (not body["has_next"]) == (size == 2)
        if len(seen) == 3:  # a row inserted before the cursor shifts nothing
            if sort == "id":
                await client.delete(f"{URL}/{seen[0]['id']}", headers=writer)
            else:
                await create(client, writer, category=category, price="0" if sort == "price" else "9")
    if sort == "id":
        assert [item["id"] for item in seen] == [item["id"] for item in created]
    elif "price" in sort:
        expected = sorted(
            created, key=lambda item: (float(item["price"]), item["id"]), reverse=sort.startswith("-")
        )
        assert [item["id"] for item in seen] == [item["id"] for item in expected]


@pytest.mark.parametrize(
    "after",
    [
        "x",
        "eyJhIjoxfQ",
        "WyJpZCIsIjFfMCIsIjEiXQ",
        "WyJwcmljZSIsMSwiMSJd",
        "WyJpZCIsMCwiMSJd",
        "bnVsbA",
        "WzFd",
        "__8",
    ],
)
async def test_an_invalid_cursor_or_one_of_another_list_is_refused(
    client: httpx.AsyncClient, after: str
) -> None:
    answer = await client.get(f"{URL}?after={after}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("filters", [(), ("category",), ("category", "in_stock")])
@pytest.mark.parametrize("sort", ["id", "-id", "price", "-price"])
async def test_every_sort_order_has_an_index_for_its_cursor(
    client: httpx.AsyncClient, sort: str, filters: tuple[str, ...]
) -> None:
    values = {"category": "c", "in_stock": True}
    query = ListQuery(sort=sort, **{name: values[name] for name in filters})
    query = query.model_copy(update={"after": query.next_cursor(1, "1")})
    statement, arguments = list_statement(query)
    engine = client.app.state.products._repository._database.engine  # type: ignore[attr-defined]
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        async with driver.transaction():
            await driver.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
            rows = await driver.fetch(f"EXPLAIN {statement}", *arguments)
    plan = "\n".join(row[0] for row in rows)
    assert "Sort" not in plan
    assert "Index Cond" in plan


async def test_a_bulk_write_creates_and_replaces(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    old = [await create(client, writer, category=category) for _ in range(2)]
    for product in old:
        await client.get(f"{URL}/{product['id']}")
    item = {"name": "Bulk", "category": category, "price": "2.50"}
    items = [
        item | {"stock": 1},
        item | {"id": old[1]["id"]},
        item | {"stock": 2},
        item | {"id": old[0]["id"]},
    ]
    answer = await client.post(BULK, json={"items": items}, headers=writer)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["created"], body["updated"]) == (2, 2)
    assert body["ids"][1::2] == [old[1]["id"], old[0]["id"]]
    for product_id, sent in zip(body["ids"], items, strict=True):
        stored = (await client.get(f"{URL}/{product_id}")).json()
        assert stored == {"stock": 0} | sent | {"id": product_id}
    key = writer | {"Idempotency-Key": f"bulk-{token_hex(8)}"}
    first = await client.post(BULK, json={"items": items}, headers=key)
    again = await client.post(BULK, json={"items": items}, headers=key)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"


async def test_a_bulk_write_is_atomic_and_names_invalid_items(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    item = {"name": "Bulk", "category": category, "price": "2.50"}
    known = (await create(client, writer, category=category))["id"]
    for items, status, fields in (
        (
            [item, item | {"id": 2**52}, item | {"id": known}, item | {"id": 2**52 + 1}],
            409,
            ["items.1.id", "items.3.id"],
        ),
        ([item, item | {"price": "-1"}, item, item | {"name": ""}], 422, ["items.1.price", "items.3.name"]),
        ([item | {"id": known}, item, item | {"id": known}], 409, ["items.0.id", "items.2.id"]),
        ([], 422, ["items"]),
        ([item] * 5001, 422, ["items"]),
    ):
        answer = await client.post(BULK, json={"items": items}, headers=writer)
        assert answer.status_code == status
        assert [fault["field"] for fault in answer.json()["errors"]] == fields
    listed = (await client.get(URL, params={"category": category})).json()
    assert [product["name"] for product in listed["items"]] == ["Lamp"]
    many = await client.post(BULK, json={"items": [{}] * 500}, headers=writer)
    assert len(many.json()["errors"]) == 100
    assert "the first 100 errors" in many.json()["detail"]
    unknown = [item | {"id": 2**52 + number} for number in range(101)]
    many = await client.post(BULK, json={"items": unknown}, headers=writer)
    assert (many.status_code, len(many.json()["errors"])) == (409, 100)
    assert "100 of 101" in many.json()["detail"]


async def test_a_bulk_write_of_5000_items_takes_seconds(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    item = {"name": "Bulk", "category": category, "price": "2.50", "stock": 1}
    started = time.monotonic()
    created = await client.post(BULK, json={"items": [item] * 5000}, headers=writer)
    ids = created.json()["ids"]
    assert len(set(ids)) == 5000
    assert ids == sorted(ids)
    replaced = await client.post(
        BULK, json={"items": [item | {"id": product_id} for product_id in ids]}, headers=writer
    )
    assert replaced.json()["updated"] == 5000
    assert time.monotonic() - started < 10


async def test_bulk_writes_of_the_same_rows_do_not_deadlock(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    item = {"name": "Bulk", "category": category, "price": "1"}
    created = await client.post(BULK, json={"items": [item] * 50}, headers=writer)
    items = [item | {"id": product_id} for product_id in created.json()["ids"]]
    answers = await asyncio.gather(
        *(client.post(BULK, json={"items": items[:: (-1) ** n]}, headers=writer) for n in range(8))
    )
    assert {answer.status_code for answer in answers} == {200}


async def test_a_hundred_concurrent_writes_succeed(
    start: Callable[..., Any], writer: dict[str, str], category: str
) -> None:
    workers = await start(), await start()
    answers = await asyncio.gather(
        *(
            workers[n % 2].post(URL, json={"name": f"n{n}", "category": category, "price": n}, headers=writer)
            for n in range(100)
        )
    )
    assert {answer.status_code for answer in answers} == {201}
    listed = (await workers[0].get(URL, params={"category": category, "page_size": 100})).json()
    assert {item["name"] for item in listed["items"]} == {f"n{n}" for n in range(100)}


@pytest.mark.timeout(400)  # copying a million rows takes seconds on an idle machine
async def test_the_millionth_row_is_as_fast_as_the_first(
    start: Callable[..., Any], service: Callable[..., Settings], category: str, measured: list[str]
) -> None:
    client = await start(REDIS_URL="", DATABASE_STATEMENT_TIMEOUT="60")
    # A vacuum of the new rows may hold the table when it is truncated. It yields after Postgres'
    # deadlock_timeout of 1 s; the owner's role waits 0.5 s.
    engine = create_engine(service(), owner=True, lock_timeout=60)
    started = time.monotonic()
    try:
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            stocks = ((n, max(999_980 - n, 0)) for n in range(1_000_000))
            lines = "".join(f"n{n}\t{category}\t{n % 1000}\t{stock}\n" for n, stock in stocks)
            await driver.copy_to_table("products", source=BytesIO(lines.encode()), columns=FIELDS)
            await driver.execute("ANALYZE products")
            last = await driver.fetchval("SELECT max(id) FROM products WHERE category = $1", category)
        measured.append(f"a million products were copied in {time.monotonic() - started:.1f} s")

        async def milliseconds(query: dict[str, Any]) -> float:
            times = []
            for _ in range(15):
                begun = time.perf_counter()
                answer = await client.get(URL, params=query)
                times.append(time.perf_counter() - begun)
                assert len(answer.json()["items"]) == 20
            return sorted(times)[7] * 1000

        for sort, price in (("id", "1"), ("price", "999"), ("-price", "0")):
            query = {"category": category, "sort": sort}
            cursor = ListQuery(sort=sort).next_cursor(
                last - 500_000 if "price" in sort else last - 100, price
            )
            first = await milliseconds(query)
            for name, far in (("row 1,000", {"page": "50"}), ("row 1,000,000", {"after": cursor})):
                taken = await milliseconds(query | far)
                measured.append(f"list by {sort}: first page {first:.1f} ms, {name} {taken:.1f} ms")
                assert taken < 3 * first + 5
        begun = time.perf_counter()
        counted = (await client.get(URL, params={"category": category, "total": "exact"})).json()["total"]
        measured.append(f"total of a million rows: {(time.perf_counter() - begun) * 1000:.0f} ms, {counted}")
        assert counted["value"] == pytest.approx(1_000_000, rel=0.1)
        rare = await milliseconds({"in_stock": "false"})
        measured.append(f"list of the 20 that are out of stock: {rare:.1f} ms")
        assert rare < 3 * first + 5
    finally:
        async with engine.begin() as connection:
            await connection.execute(text("TRUNCATE products"))
        await engine.dispose()
