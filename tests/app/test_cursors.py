"""A cursor encodes the sort values of its row; any other text is refused."""

from base64 import urlsafe_b64encode
from decimal import Decimal

import orjson
import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.products.repository import list_statement
from app.products.schemas import ListQuery

SORTS = st.sampled_from(["id", "-id", "price", "-price"])
IDS = st.integers(1, 2**63 - 1)
PRICES = st.decimals(0, Decimal("9999999999.99"), places=2)


@given(SORTS, IDS, PRICES)
def test_a_cursor_returns_its_sort_values(sort: str, product_id: int, price: Decimal) -> None:
    after = ListQuery.model_validate({"sort": sort}).next_cursor(product_id, str(price))
    query = ListQuery.model_validate({"sort": sort, "after": after})
    assert query.cursor() == {"id": product_id, "price": price}
    statement, arguments = list_statement(query)
    assert statement.count("$") == len(arguments)
    assert product_id in arguments


@given(SORTS, SORTS, IDS)
def test_a_cursor_of_another_order_is_refused(sort: str, other: str, product_id: int) -> None:
    after = ListQuery.model_validate({"sort": sort}).next_cursor(product_id, "1")
    query = ListQuery.model_validate({"sort": other, "after": after})
    if sort == other:
        assert query.cursor()
    else:
        with pytest.raises(HTTPException, match="404"):
            query.cursor()


JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(), st.lists)


@given(st.one_of(st.binary(max_size=150), JSON.map(orjson.dumps)))
def test_a_forged_cursor_is_refused(text: bytes) -> None:
    try:
        query = ListQuery.model_validate({"after": urlsafe_b64encode(text).decode().rstrip("=")})
    except ValidationError:
        return  # too long or empty
    with pytest.raises(HTTPException, match="404"):
        query.cursor()


@given(st.text(max_size=210))
def test_arbitrary_text_as_cursor_is_refused(after: str) -> None:
    try:
        query = ListQuery.model_validate({"after": after})
    except ValidationError:
        return
    with pytest.raises(HTTPException, match="404"):
        query.cursor()
