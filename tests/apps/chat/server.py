import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Form, HTTPException, Request, UploadFile, WebSocket
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.middleware.sessions import SessionMiddleware

import settings
from rooms import Rooms

rooms = Rooms(settings.REDIS_URL)
templates = Jinja2Templates("templates")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings.UPLOAD_DIR.mkdir(parents=True, exist_ok=True)
    yield
    await rooms.redis.aclose()


app = FastAPI(title="Chat", version=settings.VERSION, lifespan=lifespan)
app.add_middleware(SessionMiddleware, secret_key=settings.SECRET_KEY)
app.mount("/static", StaticFiles(directory="static"), name="static")
app.mount("/media", StaticFiles(directory=settings.UPLOAD_DIR, check_dir=False), name="media")


@app.get("/ping")
async def ping() -> dict[str, str]:
    await rooms.redis.ping()
    return {"version": settings.VERSION}


@app.get("/", response_class=HTMLResponse)
async def index(request: Request) -> HTMLResponse:
    names = sorted(await rooms.redis.smembers("rooms"))
    return templates.TemplateResponse(request, "index.html", {"rooms": names})


@app.post("/join")
async def join(
    request: Request, name: Annotated[str, Form()], room: Annotated[str, Form()]
) -> RedirectResponse:
    request.session["name"] = name
    return RedirectResponse(request.url_for("show", room=room), status_code=303)


@app.get("/rooms/{room}", response_class=HTMLResponse)
async def show(request: Request, room: str) -> HTMLResponse:
    name = request.session.setdefault("name", "guest")
    context = {"room": room, "name": name, "messages": await rooms.history(room)}
    return templates.TemplateResponse(request, "room.html", context)


@app.post("/rooms/{room}/images", status_code=201)
async def upload(request: Request, room: str, image: UploadFile) -> dict[str, str]:
    content = await image.read(settings.MAX_UPLOAD_BYTES + 1)
    if len(content) > settings.MAX_UPLOAD_BYTES:
        raise HTTPException(413, "The image is too large")
    name = f"{secrets.token_hex(8)}{Path(image.filename or '').suffix}"
    (settings.UPLOAD_DIR / name).write_bytes(content)
    url = str(request.url_for("media", path=name))
    await rooms.post(room, {"name": request.session.get("name", "guest"), "image": url})
    return {"url": url}


@app.websocket("/ws/{room}")
async def talk(socket: WebSocket, room: str) -> None:
    await socket.accept()
    await rooms.join(room, socket.session.get("name", "guest"), socket)
