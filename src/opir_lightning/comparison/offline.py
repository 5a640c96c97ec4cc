"""Read the log of a Weights & Biases run that was kept offline, without an account and without its private reader.

The log is framed as LevelDB's: blocks of 32 KiB, in each of them pieces of records with a checksum, a length and a kind
(whole, first, middle, last). A record is a message of `wandb.proto`.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from opir_lightning.errors import UserError
from opir_lightning.outside import parse_json, printable

_BLOCK, _HEAD = 32768, 7
_LARGEST = 2**28  # bytes; a long training's log has some ten million
_MAGIC = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class OfflineLog(NamedTuple):
    """What a log tells.

    Attributes:
        config: of the run, plain values.
        history: one row of names and values for each time something was logged.
        summary: the last value of each name.
        finished: the run has told that it ended well.
    """

    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    finished: bool


def read_log(path: Path) -> OfflineLog:
    """Read one ``run-*.wandb``; the tail that a killed run has not finished writing is passed over.

    Raises:
        UserError: it is damaged or no such log, or wandb is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto import wandb_internal_pb2 as proto
    except ImportError as error:
        raise UserError("Reading it needs the package wandb, which is not installed.") from error
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    finished = False
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        for data in _records(path.read_bytes()):
            record = proto.Record()  # type: ignore[attr-defined]
            record.ParseFromString(data)
            match record.WhichOneof("record_type"):
                case "run":
                    config |= _values(record.run.config.update)
                case "config":
                    config |= _values(record.config.update)
                case "history":
                    history.append(_values(record.history.item))
                case "summary":
                    summary |= _values(record.summary.update)
                case "exit":
                    finished = record.exit.exit_code == 0
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"Its log '{path.name}' is damaged ({printable(str(error))[:200]}).") from error
    return OfflineLog(config, history, summary, finished)


def _values(items: Iterable[Any]) -> dict[str, Any]:
    values = {}
    for item in items:
        value = parse_json(item.value_json)
        # What is not finite is written as a word.
        values["/".join(item.nested_key) or item.key] = (
            float(value) if value in ("Infinity", "-Infinity", "NaN") else value
        )
    return {key: value for key, value in values.items() if not (isinstance(value, float) and math.isnan(value))}


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a log; an unfinished one at the end is left out.

    Raises:
        ValueError: it does not begin as such a log, or a checksum is wrong.
    """
    if content[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin as one")
    place, pieces = len(_MAGIC), bytearray()  # which grows in place: of pieces there may be millions
    while place + _HEAD <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:  # too little for a head: zeros
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", content[place : place + _HEAD])
        piece = content[place + _HEAD : place + _HEAD + length]
        if len(piece) < length:
            return
        if checksum != zlib.crc32(piece, zlib.crc32(bytes([kind]))):
            raise ValueError(f"wrong checksum at byte {place}")
        place += _HEAD + length
        if kind in (_WHOLE, _FIRST):
            pieces.clear()
        pieces += piece
        if kind in (_WHOLE, _LAST):
            yield bytes(pieces)
