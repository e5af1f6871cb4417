from fastapi import APIRouter

from app.api import notes, users

router = APIRouter(prefix="/api")
router.include_router(users.router, tags=["users"])
router.include_router(notes.router, tags=["notes"])
