"""Folders of runs and logs as nobody's training leaves them."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

File = tuple[str, str, bytes | Callable[[Path], object]]

CONFIG = (
    "name: mine\nseed: 0\nmodel:\n  _target_: opir_lightning.models.OPIR\n  tasks: [none, noise]\ndata:\n  crop: 32\n"
)
SCORES = {"published": {"psnr": 25.0, "psnr_input": 20.0, "ssim": 0.8}}
RESULTS = {"sets": {"noise": {**SCORES, "pictures": {"a": SCORES}}}, "meta": {"steps": 4}}
METRICS = "epoch,step,val/psnr,val/noise/psnr\n0,3,25.0,25.0\n"


def folder(config: bytes, results: bytes, metrics: bytes, hydra: bytes | None) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        (path / "config").mkdir(parents=True)
        (path / "log").mkdir()
        (path / "config" / "config.yaml").write_bytes(config)
        (path / "results.json").write_bytes(results)
        (path / "log" / "metrics.csv").write_bytes(metrics)
        if hydra is not None:
            (path / "config" / "hydra.yaml").write_bytes(hydra)

    return write


def run(
    config: str | bytes = CONFIG, results: Any = RESULTS, metrics: str | bytes = METRICS, hydra: str | None = None
) -> Callable[[Path], object]:
    def raw(content: Any) -> bytes:
        if isinstance(content, bytes):
            return content
        return (content if isinstance(content, str) else json.dumps(content)).encode()

    return folder(raw(config), raw(results), raw(metrics), None if hydra is None else raw(hydra))


def run_folders(rng: random.Random, canary: Path) -> Iterator[File]:
    yield "in order", "in order", run()
    whole = json.dumps(RESULTS).encode()
    for number in range(20):
        spoiled = bytearray(whole)
        for _ in range(1 + number % 3):
            spoiled[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        yield "results", f"flipped {number}", run(results=bytes(spoiled))
        yield "results", f"cut {number}", run(results=whole[: len(whole) * number // 20])
    wrong: list[Any] = [
        None,
        3,
        "x",
        [],
        {},
        [1],
        {"psnr": "x"},
        float("nan"),
        1e308,
        -1e308,
        True,
        "9" * 5000,
        10**400,
    ]
    for number, value in enumerate(wrong):
        for place in ("sets", "meta"):
            yield "results", f"{place} {number}", run(results={**RESULTS, place: value})
        yield "results", f"set {number}", run(results={"sets": {"noise": value}})
        yield "results", f"profile {number}", run(results={"sets": {"noise": {"published": value}}})
        yield (
            "results",
            f"score {number}",
            run(results={"sets": {"noise": {"published": {"psnr": value, "ssim": value}}}}),
        )
        yield "results", f"picture {number}", run(results={"sets": {"noise": {**SCORES, "pictures": {"a": value}}}})
        yield (
            "results",
            f"steps {number}",
            run(results={**RESULTS, "meta": {"steps": value, "seed": value, "weights": value}}),
        )
    for name, text in {
        "deep": b"[" * 100_000, "deep and closed": b"[" * 600 + b"]" * 600, "twice": b'{"sets": 1, "sets": 2}',
        "digits": b'{"sets": ' + b"9" * 100_000 + b"}", "bytes": b"\xff\xfe{", "nothing": b"", "zeros": bytes(1000),
        "exponent": b'{"sets": {"noise": {"published": {"psnr": 1e400}}}}',
    }.items():  # fmt: skip
        yield "results", name, run(results=text)
    yield "huge", "results", run(results=b" " * (65 * 2**20))
    yield from _configs(canary)
    for number, rows in enumerate(
        ["", "\0\0", "a,b", "step,val/psnr\n" + "x" * 200_000, 'step,val/psnr\n"unclosed', "step,val/psnr\n1,2,3,4,5",
         "step,val/psnr\nnan,nan\ninf,inf\n1e400,1e400\n-1,25", "step,val/psnr\n9e99,25\n1e20,25",
         b"step,val/psnr\n\xff,\xff",
         "val/psnr,val/psnr\n1,2", "step,val/psnr,val/x/psnr,val//psnr\n3,25,inf,nan", "\n" * 5000]
    ):  # fmt: skip
        yield "metrics", f"rows {number}", run(metrics=rows)
    for number, text in enumerate(
        ["hydra: 3", "hydra: {runtime: 3}", "hydra: {runtime: {cwd: [1], choices: [1]}}",
         "hydra:\n  runtime:\n    choices: {1: {2: 3}}", "[", "x",
         "hydra: {runtime: {cwd: /etc, choices: {model: ../../x}}}"]
    ):  # fmt: skip
        yield "config", f"hydra {number}", run(hydra=text)


def _configs(canary: Path) -> Iterator[File]:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    tables = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 60))
    merged = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], y: 1}}\n" for n in range(1, 60))
    named = 'a0: "x"\n' + "".join(f'a{n}: "${{a{n - 1}}}${{a{n - 1}}}${{a{n - 1}}}"\n' for n in range(1, 20))
    nested = "a0: {x: 1}\n" + "".join(f'a{n}: {{x: "${{a{n - 1}}}", y: "${{a{n - 1}}}"}}\n' for n in range(1, 20))
    texts = {
        "apply": f"!!python/object/apply:os.mkdir ['{canary / 'yaml'}']",
        "new": f"a: !!python/object/new:os.system [mkdir '{canary / 'yaml'}']",
        "name": "a: !!python/name:os.system",
        "module": "a: !!python/module:os",
        "binary": "a: !!binary aGVsbG8=",
        "set": "a: !!set {a, b}",
        "pairs": "a: !!omap [a: 1, a: 2]",
        "aliases": bomb, "tables": tables, "merged": merged, "names": named, "nested names": nested,
        "itself": "a: &a [*a]\nb: &b {c: *b}",
        "circle": 'a: "${b}"\nb: "${a}"', "own circle": 'a: {x: "${a}", y: "${a}"}',
        "deep": "a: " + "[" * 50_000, "deep tables": "a: " + "{a: " * 50_000,
        "indents": "".join("\n" + " " * n + "a:" for n in range(900)),
        "sixty": "a: " + "1:" + ":".join(["59"] * 40_000), "sixty and a part": "a: " + ":".join(["59"] * 40_000) + ".5",
        "digits": "a: " + "9" * 100_000, "hexadecimal": "a: 0x" + "f" * 100_000,
        "binary digits": "a: 0b" + "1" * 100_000,
        "date": "a: 2020-99-99", "time": "a: 2020-01-01 99:99:99", "good date": "a: 2020-01-01",
        "nan": "seed: .nan\nmodel: .inf", "seed": "seed: " + "9" * 39, "no table": "[1, 2]", "text": "text", "null": "",
        "two": "a: 1\n---\nb: 2", "tabs": "a:\n\t- b", "zero": "a: \0", "list as a name": "? [1, 2]\n: 3",
        "numbers as names": "1: {2: 3}",
        "target": CONFIG + f"callbacks: {{_target_: os.mkdir, path: '{canary / 'target'}'}}\n",
        "resolver": CONFIG + "a: ${oc.env:HOME}\nb: ${oc.decode:x}\nc: ${now:}\n",
        "evaluation": "benchmark: 3\ncheckpoint: /dev/zero\n",
        "evaluation of itself": "benchmark: {}\ncheckpoint: .\ntask_code: [1]\n",
        "wrong parts": "data: 3\nmodel: [1]\ntrainer: x\nseed: [1]\nname: {a: 1}\n",
        "escape codes": 'name: "\\e[2J"\nseed: 1\n',
    }  # fmt: skip
    for name, text in texts.items():
        yield "config", name, run(config=text)
    yield "config", "bytes", run(config=b"a: \xff\xfe")
    yield "huge", "config", run(config="a: [" + "a, " * 300_000 + "]")


def log_files(rng: random.Random) -> Iterator[File]:
    """W&B's logs: a frame of blocks, with messages in it."""
    from wandb.proto import wandb_internal_pb2 as proto

    def frame(*pieces: tuple[bytes, int], wrong: bool = False) -> bytes:
        content = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
        for piece, kind in pieces:
            left = 32768 - len(content) % 32768
            if left < 7:
                content += bytes(left)
            total = zlib.crc32(piece, zlib.crc32(bytes([kind]))) ^ int(wrong)
            content += struct.pack("<IHB", total, len(piece), kind) + piece
        return content

    def history(value: str) -> bytes:
        record = proto.Record()
        item = record.history.item.add()
        item.key, item.value_json = "val/psnr", value
        return record.SerializeToString()

    whole = frame((history("25.0"), 1), (history('{"a": 1}'), 1))
    for number in range(20):
        spoiled = bytearray(whole)
        spoiled[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        yield "log", f"flipped {number}.wandb", bytes(spoiled)
    for number, value in enumerate(("[" * 3000, "9" * 5000, "NaN", '"Infinity"', "x", "", '{"a":1,"a":2}', "[[1]]")):
        yield "log", f"value {number}.wandb", frame((history(value), 1))
    yield "log", "wrong sum.wandb", frame((history("1"), 1), wrong=True)
    yield "log", "no message.wandb", frame((b"\xff" * 50, 1))
    yield "log", "kinds.wandb", frame((b"a", 4), (b"b", 3), (b"c", 9), (b"d", 2), (history("1"), 1))
    yield "log", "many pieces.wandb", frame((b"a", 2), *[(b"a", 3)] * 3000)
    yield "log", "no log.wandb", b"x" * 5000
    yield "log", "nothing.wandb", b""
    yield "huge", "sparse.wandb", _sparse


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 * 2**30)
