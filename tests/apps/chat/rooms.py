import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import WebSocket, WebSocketDisconnect
from redis.asyncio import Redis

HISTORY = 50


class Rooms:
    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url, decode_responses=True)

    async def post(self, room: str, message: dict[str, str]) -> None:
        line = json.dumps(message)
        async with self.redis.pipeline() as pipe:
            pipe.lpush(f"history:{room}", line).ltrim(f"history:{room}", 0, HISTORY - 1).sadd("rooms", room)
            await pipe.execute()
        await self.redis.publish(f"room:{room}", line)

    async def history(self, room: str) -> list[dict[str, str]]:
        lines = await self.redis.lrange(f"history:{room}", 0, -1)
        return [json.loads(line) for line in reversed(lines)]

    async def messages(self, room: str) -> AsyncIterator[str]:
        async with self.redis.pubsub() as pubsub:
            await pubsub.subscribe(f"room:{room}")
            async for message in pubsub.listen():
                if message["type"] == "message":
                    yield message["data"]

    async def join(self, room: str, name: str, socket: WebSocket) -> None:
        async def send() -> None:
            async for line in self.messages(room):
                await socket.send_text(line)

        async with asyncio.TaskGroup() as tasks:
            sender = tasks.create_task(send())
            try:
                while True:
                    await self.post(room, {"name": name, "text": await socket.receive_text()})
            except WebSocketDisconnect:
                sender.cancel()
