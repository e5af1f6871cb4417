from slugs import slugify
from sqlmodel import Session, select

from app.core.security import passwords
from app.models import Card, CardCreate, User


def create_user(session: Session, email: str, password: str, *, is_superuser: bool = False) -> User:
    user = User(email=email, hashed_password=passwords.hash(password), is_superuser=is_superuser)
    session.add(user)
    session.commit()
    return user


def authenticate(session: Session, email: str, password: str) -> User | None:
    user = session.exec(select(User).where(User.email == email)).first()
    return user if user and passwords.verify(password, user.hashed_password) else None


def create_card(session: Session, new: CardCreate) -> Card:
    card = Card.model_validate(new, update={"slug": slugify(new.title)})
    session.add(card)
    session.commit()
    session.refresh(card)
    return card
