from datetime import datetime

from fastapi import APIRouter, HTTPException, status
from pydantic import BaseModel, Field

from app.api.dependencies import Connection, CurrentUser

router = APIRouter(prefix="/notes")


class NewNote(BaseModel):
    title: str = Field(max_length=200)
    body: str = ""


class Note(NewNote):
    id: int
    created_at: datetime


@router.get("")
async def list_notes(connection: Connection, user: CurrentUser) -> list[Note]:
    rows = await connection.fetch(
        "SELECT id, title, body, created_at FROM notes WHERE user_id = $1 ORDER BY id DESC LIMIT 50",
        user["id"],
    )
    return [Note(**row) for row in rows]


@router.post("", status_code=status.HTTP_201_CREATED)
async def create_note(new: NewNote, connection: Connection, user: CurrentUser) -> Note:
    row = await connection.fetchrow(
        "INSERT INTO notes (user_id, title, body) VALUES ($1, $2, $3) RETURNING id, title, body, created_at",
        user["id"],
        new.title,
        new.body,
    )
    return Note(**row)


@router.get("/{note_id}")
async def read_note(note_id: int, connection: Connection, user: CurrentUser) -> Note:
    row = await connection.fetchrow(
        "SELECT id, title, body, created_at FROM notes WHERE id = $1 AND user_id = $2", note_id, user["id"]
    )
    if row is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "There is no such note")
    return Note(**row)


@router.delete("/{note_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_note(note_id: int, connection: Connection, user: CurrentUser) -> None:
    await connection.execute("DELETE FROM notes WHERE id = $1 AND user_id = $2", note_id, user["id"])
