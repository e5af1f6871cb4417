from datetime import UTC, datetime

from sqlmodel import Field, SQLModel


class User(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    email: str = Field(unique=True, index=True, max_length=255)
    hashed_password: str
    is_superuser: bool = False


class CardCreate(SQLModel):
    title: str = Field(min_length=1, max_length=255)
    text: str = ""


class Card(CardCreate, table=True):
    id: int | None = Field(default=None, primary_key=True)
    slug: str = Field(max_length=255)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Cards(SQLModel):
    data: list[Card]
    count: int


class Token(SQLModel):
    access_token: str
    token_type: str = "bearer"
