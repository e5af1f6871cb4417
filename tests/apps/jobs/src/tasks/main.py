import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated

from arq import create_pool
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import APIKeyHeader
from prometheus_client import CONTENT_TYPE_LATEST, Counter, generate_latest
from pydantic import BaseModel, Field

from tasks.db import Session, Task, create_tables, engine
from tasks.settings import settings

TASKS = Counter("tasks_enqueued", "Tasks that the API has put into the queue")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await create_tables()
    app.state.queue = await create_pool(settings.queue)
    yield
    await app.state.queue.aclose()
    await engine.dispose()


app = FastAPI(title="Tasks", version=version("tasks"), lifespan=lifespan)


async def check_key(key: Annotated[str, Depends(APIKeyHeader(name="X-API-Key"))]) -> None:
    if key != settings.API_KEY:
        raise HTTPException(401, "Wrong API key")


class NewTask(BaseModel):
    text: str
    seconds: float = Field(default=0, ge=0, le=600)


@app.get("/health")
async def health(request: Request) -> dict[str, str]:
    await request.app.state.queue.ping()
    return {"status": "ok", "version": app.version}


@app.get("/metrics", include_in_schema=False)
def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@app.post("/tasks", status_code=202, dependencies=[Depends(check_key)])
async def create_task(request: Request, new: NewTask) -> dict[str, str]:
    task = Task(id=uuid.uuid4().hex, text=new.text)
    async with Session.begin() as session:
        session.add(task)
    await request.app.state.queue.enqueue_job("work", task.id, new.seconds, _job_id=task.id)
    TASKS.inc()
    return {"id": task.id}


@app.get("/tasks/{task_id}")
async def read_task(task_id: str) -> dict[str, str | int | None]:
    async with Session() as session:
        task = await session.get(Task, task_id)
    if task is None:
        raise HTTPException(404, "There is no such task")
    return {"id": task.id, "runs": task.runs, "result": task.result}
