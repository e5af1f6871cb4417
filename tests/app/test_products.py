"""Products over HTTP, down to rows in Postgres."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import pytest

URL = "/api/v1/products"


async def create(client: httpx.AsyncClient, writer: dict[str, str], **fields: Any) -> dict[str, Any]:
    product = {"name": "Lamp", "category": "light", "price": "19.90", "stock": 3} | fields
    answer = await client.post(URL, json=product, headers=writer)
    assert answer.status_code == 201, answer.text
    result: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{URL}/{result['id']}"
    return result


async def test_a_product_lives_from_creation_to_deletion(
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


async def test_a_product_is_a_row_before_the_answer_is_sent(
    client: httpx.AsyncClient, writer: dict[str, str], category: str
) -> None:
    created = await create(client, writer, category=category, price="0.10")
    await client.patch(f"{URL}/{created['id']}", json={"price": "9999999999.99"}, headers=writer)
    database = client.app.state.products._repository._database  # type: ignore[attr-defined]
    async with database.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver: asyncpg.Connection[Any] = raw.driver_connection
        rows = await driver.fetch("SELECT name, price::text FROM products WHERE category = $1", category)
    assert [tuple(row) for row in rows] == [("Lamp", "9999999999.99")]


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
        ({"stock": -1}, "stock"),
        ({"stock": 2**31}, "stock"),
        ({"stock": 1.5}, "stock"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_bad_field_is_named(
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


@pytest.mark.parametrize(
    "body", [b'{"name":"\\ud800","category":"c","price":"1"}', b"\xff", b"{", b"[]", b""]
)
async def test_a_broken_body_is_the_callers_fault(
    client: httpx.AsyncClient, writer: dict[str, str], body: bytes
) -> None:
    answer = await client.post(URL, content=body, headers=writer | {"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_an_empty_change_is_refused(client: httpx.AsyncClient, writer: dict[str, str]) -> None:
    answer = await client.patch(f"{URL}/1", json={}, headers=writer)
    assert answer.status_code == 422


async def test_a_list_has_pages_of_one_category(
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
    ["page=0", "page=10001", "page=x", "page_size=0", "page_size=101", "category=", "category=a%00b"],
)
async def test_pages_are_bounded(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"{URL}?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["in"] == "query"


@pytest.mark.parametrize("product_id", ["0", "-1", "x", "9223372036854775808", "%00"])
async def test_an_impossible_id_is_refused(client: httpx.AsyncClient, product_id: str) -> None:
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


async def test_concurrent_changes_lose_nothing(
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
