"""Limits for what comes from outside: files that somebody else may have written, by mistake or by intent.

A reader refuses what is larger, deeper or of another kind than anything this program writes, before it takes memory or
time for it.
"""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opir_lightning.errors import UserError

LARGEST_TEXT = 64 * 2**20  # bytes; results.json of the public sets has some 200 KB
LARGEST_PICKLE = 8 * 2**20  # bytes of a checkpoint's structure without its numbers; opir_base needs some 200 KB
DEEPEST = 32  # lists in lists in tables; a configuration has some 6
MOST_VALUES = 10**6
LARGEST_INT = 2**63
LARGEST_TUPLE = 1000  # items, with those of the tuples in it; a tensor's description has some 10
# What the checkpoint of a training consists of. torch's own list is longer: with some of it, a kilobyte asks for
# gigabytes of memory.
_KINDS = re.compile(
    r"collections OrderedDict|torch (\w+Storage|Size|device|float\w+|bfloat16|u?int\d+|bool)"
    r"|torch\.storage UntypedStorage|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
    r"|torch\._utils _rebuild_(tensor_v2|parameter|sparse_tensor)"
)


def printable(text: str) -> str:
    """A text from outside for a message: one line, in which nothing moves the cursor or changes the colour."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def read_text(path: Path, *, most: int = LARGEST_TEXT) -> str:
    """A file of UTF-8 text.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than ``most`` bytes, or is no UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content.decode("utf-8")


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none, has a name twice in one table, or is no plain data by `check_plain`.
    """
    try:
        content = json.loads(text, object_pairs_hook=_each_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    check_plain(content)
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name stands twice in a table")
    return table


def check_plain(content: Any) -> None:
    """Raise ``ValueError`` unless it is lists and tables of texts, numbers, truth values and nothing, in bounds.

    What is there in several places counts as often, and so does all that is in it: what is small in memory may be
    endless once it is written out.
    """
    values = 0
    waiting: list[tuple[Iterable[Any], int]] = [((content,), 0)]
    while waiting:
        level, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        for value in level:
            values += 1
            if values > MOST_VALUES:
                raise ValueError(f"it holds more than {MOST_VALUES} values")
            if isinstance(value, Mapping):
                if not all(isinstance(name, str | int | float | None) for name in value):
                    raise ValueError("a table has names that are no texts")
                waiting.append((value.values(), depth + 1))
            elif isinstance(value, list | tuple):
                waiting.append((value, depth + 1))
            elif isinstance(value, int) and not -LARGEST_INT <= value < LARGEST_INT:
                raise ValueError("a number has more than 64 bits")
            elif not isinstance(value, str | int | float | None):
                raise ValueError(f"it holds more than plain data ({type(value).__name__})")


def check_checkpoint(path: Path) -> None:
    """Look at the structure of a file of ``torch.save`` before torch does; its tensors are not touched.

    Raises:
        UserError: it is no such file, is compressed (a few bytes could become any number), or its structure is larger
            or of other kinds than a training of this program writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed")
            names = [entry for entry in entries if entry.filename.split("/")[-1] == "data.pkl"]
            if len(names) != 1 or names[0].file_size > LARGEST_PICKLE:
                raise ValueError("it has no structure, or one that is too large")
            with archive.open(names[0]) as file:
                _check_pickle(file.read(LARGEST_PICKLE + 1))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # a damaged archive raises whatever its bytes happen to mean
        raise UserError(
            f"'{path}' is not a training checkpoint of this program: it is damaged or holds more than plain data "
            f"({printable(str(error))[:100] or type(error).__name__})."
        ) from error


def _check_pickle(content: bytes) -> None:
    """Raise ``ValueError`` for a kind that is not in `_KINDS`, or a tuple in tuples that is endless to compare.

    The machine that reads pickles is followed, with the number of items in place of each object: tuples are hashed
    while a file is read, where nothing can be looked at in between.
    """
    stack: list[int | None] = []  # None marks where a list of items begins
    memo: dict[int, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        match opcode.name:
            case "GLOBAL" if not _KINDS.fullmatch(str(argument)):
                raise ValueError(f"it names '{argument}'")
            case "PROTO" | "STOP":
                continue
            case "MARK":
                stack.append(None)
                continue
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1] or 0
                continue
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
                continue
            case "TUPLE":
                stack.append(1 + sum(_above_mark(stack)))
            case "APPENDS" | "SETITEMS":
                _above_mark(stack)
                continue
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(1 + sum(stack.pop() or 0 for _ in range(int(opcode.name[-1]))))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack[-1] = arguments
            case "APPEND" | "BUILD":
                stack.pop()
                continue
            case "SETITEM":
                del stack[-2:]
                continue
            case "BINPERSID":
                stack[-1] = 1
            case _ if not opcode.stack_before and len(opcode.stack_after) == 1:
                stack.append(1)
            case _:
                raise ValueError(f"it has the instruction {opcode.name}")
        if (stack[-1] or 0) > LARGEST_TUPLE:
            raise ValueError("its tuples are endless")


def _above_mark(stack: list[int | None]) -> list[int]:
    items = []
    while (item := stack.pop()) is not None:
        items.append(item)
    return items
