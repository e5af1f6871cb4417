from fastapi import APIRouter, HTTPException
from sqlmodel import func, select

from app import crud
from app.api.deps import CurrentUser, SessionDep
from app.models import Card, CardCreate, Cards

router = APIRouter(prefix="/cards", tags=["cards"])


@router.get("/")
def read_cards(session: SessionDep, skip: int = 0, limit: int = 20) -> Cards:
    count = session.exec(select(func.count()).select_from(Card)).one()
    cards = session.exec(select(Card).order_by(Card.id.desc()).offset(skip).limit(limit)).all()
    return Cards(data=list(cards), count=count)


@router.post("/", status_code=201)
def create_card(session: SessionDep, user: CurrentUser, new: CardCreate) -> Card:
    return crud.create_card(session, new)


@router.get("/{card_id}")
def read_card(session: SessionDep, card_id: int) -> Card:
    card = session.get(Card, card_id)
    if card is None:
        raise HTTPException(404, "Card not found")
    return card
