import asyncio
from typing import Any

from sqlalchemy import update

from tasks.db import Session, Task, engine
from tasks.settings import settings


async def work(context: dict[str, Any], task_id: str, seconds: float) -> None:
    async with Session.begin() as session:
        await session.execute(update(Task).where(Task.id == task_id).values(runs=Task.runs + 1))
    await asyncio.sleep(seconds)
    async with Session.begin() as session:
        task = await session.get_one(Task, task_id)
        task.result = task.text.upper()


async def shutdown(context: dict[str, Any]) -> None:
    await engine.dispose()


class WorkerSettings:
    functions = [work]
    on_shutdown = shutdown
    redis_settings = settings.queue
    max_jobs = 10
    job_timeout = 600
    # After SIGTERM a worker takes no new task and finishes those that it has.
    job_completion_wait = 300
