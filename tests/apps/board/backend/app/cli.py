"""Manage the board.

Usage:
  cli.py add TITLE [--text TEXT]
  cli.py count

Options:
  --text TEXT  The text of the card [default: ].
"""

from docopt import docopt
from sqlmodel import Session, func, select

from app import crud
from app.core.db import engine
from app.models import Card, CardCreate


def main() -> None:
    arguments = docopt(__doc__)
    with Session(engine) as session:
        if arguments["add"]:
            card = crud.create_card(session, CardCreate(title=arguments["TITLE"], text=arguments["--text"]))
            print(card.slug)
        else:
            print(session.exec(select(func.count()).select_from(Card)).one())


if __name__ == "__main__":
    main()
