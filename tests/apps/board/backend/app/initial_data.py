import logging

from sqlmodel import Session, select

from app import crud
from app.core.config import settings
from app.core.db import engine
from app.models import User

logging.basicConfig(level=logging.INFO)


def main() -> None:
    with Session(engine) as session:
        if not session.exec(select(User).where(User.email == settings.FIRST_SUPERUSER)).first():
            crud.create_user(
                session, settings.FIRST_SUPERUSER, settings.FIRST_SUPERUSER_PASSWORD, is_superuser=True
            )
            logging.info("Created the first superuser")


if __name__ == "__main__":
    main()
