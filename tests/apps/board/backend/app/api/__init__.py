from fastapi import APIRouter

from app.api import cards, login, utils

router = APIRouter()
router.include_router(login.router)
router.include_router(cards.router)
router.include_router(utils.router)
