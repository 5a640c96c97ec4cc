"""How much the page keeps for its visitors: beyond it, new pictures are refused until older ones are deleted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from opir_lightning.errors import UserError

MOST_KEPT = 4 * 2**30  # bytes of uploads and results
FULL = "There is no room for more pictures at present. They are deleted after about an hour: try again later."

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def kept(folder: Path) -> int:
    """Bytes of all files in a folder and below it."""
    total = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # deleted meanwhile
                total += Path(inside, name).stat().st_size
    return total


def check_room(folder: Path, most: int) -> None:
    """Raise `UserError` if a folder holds more than ``most`` bytes."""
    if kept(folder) > most:
        raise UserError(FULL)


class BoundedUploads:
    """ASGI middleware: an upload for which there is no room is refused before it is read.

    Args:
        app: that takes the uploads.
        folder: where they lie.
        most: bytes in it, with those of the uploads that are under way.
    """

    def __init__(self, app: Any, *, folder: Path, most: int = MOST_KEPT) -> None:
        self.app, self.folder, self.most = app, folder, most
        self._coming = 0

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():  # browsers tell it
            await _refuse(send, 411, "An upload has to tell its length.")
            return
        self._coming += int(length)
        try:
            if await asyncio.to_thread(kept, self.folder) + self._coming > self.most:
                await _refuse(send, 507, FULL)
            else:
                await self.app(scope, receive, send)
        finally:
            self._coming -= int(length)


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
