from importlib.metadata import version

from fastapi import APIRouter
from sqlmodel import select

from app.api.deps import SessionDep

router = APIRouter(prefix="/utils", tags=["utils"])


@router.get("/health-check/")
def health_check(session: SessionDep) -> bool:
    return bool(session.exec(select(1)).one())


@router.get("/version")
def read_version() -> str:
    return version("board")
