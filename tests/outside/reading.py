"""Reads files in a process of its own, with two gigabytes of memory and some seconds for each, and tells the outcomes.

``python reading.py LIST`` where LIST has a line ``[reader, path]`` in JSON for each file. Printed are a line before and
a line after each file, so that a crash tells where it was.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

ROOM = 2 * 2**30  # bytes beyond what is in use once all is imported
SECONDS = 20.0  # of CPU time, whatever else the machine does


def readers(weights: Path) -> dict[str, Callable[[Path], object]]:
    """What reads files from outside, by a short name; each refuses with a `UserError`, or says what is wrong."""
    import opir_lightning.degradations.blur_kernels as kernels
    from opir_lightning import compare, restore
    from opir_lightning.checkpoints import load_model, read_header
    from opir_lightning.comparison.finding import read_runs
    from opir_lightning.comparison.offline import read_log
    from opir_lightning.data import CleanFolder
    from opir_lightning.data.images import read_depth, read_rgb
    from opir_lightning.data.inspection import inspect_set, list_sets, look_at
    from opir_lightning.data.packs import DamagedPackError, Pack
    from opir_lightning.degradations import Identity
    from opir_lightning.errors import UserError
    from opir_lightning.picture_files import read_picture
    from opir_lightning.restorer import Restorer
    from opir_lightning.resume import find_progress

    restorer = Restorer.from_pretrained(weights, device="cpu")

    def run_folder(path: Path) -> None:
        runs, _, left_out = read_runs([path])
        if not runs:
            raise UserError(left_out[0].reason)

    def pack(path: Path) -> None:
        try:
            opened = Pack(path)
            for number in range(len(opened)):
                opened.pixels(number)
            opened.outdated()
        except DamagedPackError as error:
            raise UserError(str(error)) from error

    def looked_at(path: Path) -> None:
        scene = look_at(path, [], path.parent)
        if scene.small is None:
            raise UserError("; ".join(scene.faults))

    def command(path: Path) -> None:
        with tempfile.TemporaryDirectory() as out:
            arguments = [path, "-o", out, "--weights", weights, "--device", "cpu", "--compare", "--uncertainty"]
            if restore.main([*map(str, arguments)]) != 0:
                raise UserError("failures are named")

    def compared(path: Path) -> None:
        with tempfile.TemporaryDirectory() as out:
            if compare.main([str(path), "-o", out, "--pictures", "1"]) != 0:
                raise UserError("nothing to compare")

    def checked(path: Path) -> None:
        source = CleanFolder(task="none", degradation=Identity(), folders=[path.name])
        (listing,), _ = list_sets("train", {"mine": source}, path.parent)
        with ThreadPoolExecutor(2) as pool:
            if inspect_set(listing, path.parent, pool, lambda: None).faults:
                raise UserError("faults are named")

    return {
        "weights": load_model,
        "header": read_header,
        "progress": lambda path: find_progress({"run_dir": str(path)}),
        "run": run_folder,
        "log": read_log,
        "picture": read_picture,
        "restorer": lambda path: restorer(path),
        "restore": command,
        "compare": compared,
        "check": checked,
        "rgb": read_rgb,
        "data": looked_at,
        "depth": read_depth,
        "kernel": lambda path: kernels.read_kernels([path]),
        "pack": pack,
    }


class Bounded:
    """Calls readers one by one, with bounded memory and time, and tells what becomes of each file."""

    def __init__(self, weights: Path) -> None:
        from opir_lightning.errors import UserError

        self.refusal, self.by_name = UserError, readers(weights)
        for name in ("rgb", "picture", "depth"):  # what decoders import when they are first used is no file's doing
            for path in sorted(weights.parent.glob("good.*")):
                with suppress(UserError):
                    self.by_name[name](path)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        self.before = peak()
        self.said, sys.stdout = sys.stdout, sys.stderr

    def tell(self, **what: object) -> None:
        print(json.dumps(what), file=self.said, flush=True)

    def read(self, reader: str, path: Path) -> tuple[str, str]:
        """The outcome, ``read``, ``refused`` or ``raised``, and what was said."""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process: nothing here is in the way of the signal
        try:
            self.by_name[reader](path)
            return "read", ""
        except self.refusal as error:
            return "refused", str(error)
        except Exception as error:
            return "raised", f"{type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def memory(self) -> int:
        """MiB that all files together took at most."""
        return (peak() - self.before) // 1024


def main(listing: Path, weights: Path) -> None:
    bounded = Bounded(weights)
    for line in listing.read_text().splitlines():
        reader, path = json.loads(line)
        bounded.tell(started=path, reader=reader)
        outcome, text = bounded.read(reader, Path(path))
        bounded.tell(path=path, reader=reader, outcome=outcome, text=text)
    bounded.tell(MiB=bounded.memory())


def peak() -> int:
    """KiB that were in use at most; unlike what `resource` tells, not by the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
