"""Restore pictures and folders of pictures: ``python -m opir_lightning.restore INPUT... -o DIR``.

Neither torch nor the network is imported before the arguments are read, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opir_lightning.errors import UserError
from opir_lightning.files import kind_of, remove_leftovers
from opir_lightning.memory import Scratch, out_of_memory
from opir_lightning.outside import printable
from opir_lightning.picture_files import FORMATS, LARGE, SUFFIXES, check_colours, read_picture, write_picture
from opir_lightning.restore_plan import Job, plan
from opir_lightning.side_pictures import write_comparison, write_uncertainty
from opir_lightning.threads import limit_spinning

if TYPE_CHECKING:
    from opir_lightning.restorer import Restorer

EPILOG = """\
Exit status: 0 all restored, 1 something failed (each named with its reason, the rest is restored), 2 wrong usage.
Finished results are skipped, so a stopped run is continued by the same command. Inputs are never overwritten."""

LEFT = 24 * 3600  # seconds: nobody writes a picture for so long

# Tiles of a picture count as parts of it: the time that is left is right with one large picture, too.
BAR = "{percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} pictures [{elapsed}<{remaining}{postfix}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (wrong usage leaves by ``SystemExit(2)``, as argparse does)."""
    parser = _parser()
    args = parser.parse_args(argv)
    limit_spinning()
    with _told_to_end():
        return _main(parser, args)


@contextmanager
def _told_to_end() -> Iterator[None]:
    """What batch systems and closed windows send ends the command as Ctrl-C does: nothing half-written stays."""

    before: dict[int, Any] = {}

    def stop(number: int, _: object) -> None:
        for handled in before:  # a second one would stop the tidying up
            signal.signal(handled, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores it, and is to go on
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    try:
        try:
            jobs, failed = plan(
                args.inputs,
                args.output,
                recursive=args.recursive,
                kind=args.format,
                compare=args.compare,
                uncertainty=args.uncertainty,
            )
        except UserError as error:
            parser.error(str(error))
        return _run(jobs, failed, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 128 + int(stopped.args[0] if stopped.args else signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m opir_lightning.restore",
        description="Remove noise, rain, haze, blur and low light from pictures of any size.",
        usage="%(prog)s INPUT... -o DIR [--weights NAME|FILE|OWNER/NAME] [options]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help=f"pictures ({SUFFIXES}) or folders of pictures")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the results, under the same names")
    add(
        "--weights",
        metavar="NAME|FILE|OWNER/NAME",
        help="a packaged name, a .safetensors or .ckpt file, a run folder, or a model on the Hugging Face Hub "
        "(default: the best packaged ones)",
    )
    add("--task", default="auto", help="name of the degradation where you know it (default: auto, estimate it)")
    add("--strength", type=_share, default=1.0, metavar="0...1", help="from the picture as it is to its restoration")
    add(
        "--highlights",
        choices=("keep", "clip"),
        default="keep",
        help="of dark pictures: keep the sky that becomes brighter than white, or cut it off (default: keep)",
    )
    add(
        "--haze",
        choices=("smooth", "raw"),
        default="smooth",
        help="of hazy pictures: what is taken off varies slowly, or as the network has it (default: smooth)",
    )
    add("--tile", type=_tile, default="auto", metavar="auto|N", help="tile side in pixels (default: auto, by size)")
    add("--overlap", type=_count, metavar="N", help="surroundings a tile sees on every side (default: 128 at most)")
    add("--recursive", action="store_true", help="descend into the folders inside the given folders")
    add("--overwrite", action="store_true", help="restore again what is already there")
    add(
        "--uncertainty",
        action="store_true",
        help="write the expected error: NAME_uncertainty.png to see (dark is certain), .tiff as numbers",
    )
    add("--compare", action="store_true", help="write NAME_compare.png too: input and result side by side")
    kinds = ("keep", *(suffix[1:] for suffix in FORMATS))
    add("--format", choices=kinds, default="keep", help="kind of the results (default: that of the input)")
    add("--quality", type=_quality, metavar="1...100", help="for formats with a loss (default: one that is not seen)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the network; the short ones are faster on devices made for them (default: float32)",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of pixels")
    return int(text)


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 100")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value


def _tile(text: str) -> int | str:
    if text != "auto" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"'{text}' is neither 'auto' nor a positive number of pixels")
    return text if text == "auto" else int(text)


def _run(jobs: list[Job], failed: list[str], args: argparse.Namespace) -> int:
    """Restore what is not finished; prints failures as they come and a summary; returns the exit status."""
    waiting = (
        jobs if args.overwrite else [job for job in jobs if not all(kind_of(path) == "file" for path in job.outputs)]
    )
    for line in failed:
        print(f"failed: {printable(line)}", file=sys.stderr)
    failures = len(failed)
    for folder in {path.parent for job in waiting for path in job.outputs}:
        if kind_of(folder) == "folder":
            remove_leftovers(folder, older_than=LEFT)
    if waiting:
        from tqdm import tqdm

        restorer = _load(args)
        with tqdm(total=len(waiting), bar_format=BAR, disable=None) as bar:
            for number, job in enumerate(waiting):
                try:
                    _restore(restorer, job, args, bar)
                except (UserError, OSError, RuntimeError, MemoryError) as error:
                    failures += 1
                    reason = _reason(error)
                    named = reason if str(job.source) in reason else f"{job.source}: {reason}"
                    tqdm.write(f"failed: {printable(named)}", file=sys.stderr)
                bar.update(number + 1 - bar.n)
    done, skipped = len(waiting) - failures + len(failed), len(jobs) - len(waiting)
    print(f"{done} restored, {skipped} already there, {failures} failed; results in {args.output}")
    return 1 if failures else 0


def _load(args: argparse.Namespace) -> Restorer:
    from opir_lightning.checkpoints import default_weights
    from opir_lightning.inference import exact_float32
    from opir_lightning.restorer import Restorer

    exact_float32()
    weights = default_weights() if args.weights is None else args.weights
    restorer = Restorer.from_pretrained(weights, device=args.device, dtype=args.dtype)
    restorer.task_index(args.task)  # an unknown task is an error before the first picture, not one per picture
    return restorer


def _smaller(tile: int | None, size: tuple[int, int]) -> int | None:
    """Half of the tiles that did not fit into memory; None where smaller ones would be all overlap."""
    from opir_lightning.inference import SMALLEST_TILE

    used = tile or max(size)
    return used // 2 if used >= 2 * SMALLEST_TILE else None


def _reason(error: BaseException) -> str:
    if out_of_memory(error):
        from opir_lightning.inference import SMALLEST_TILE

        return f"not enough memory, even for tiles of {SMALLEST_TILE} pixels"
    return str(error).strip().split("\n")[0] or type(error).__name__


def _restore(restorer: Restorer, job: Job, args: argparse.Namespace, bar: Any) -> None:
    """Restore one picture and write what was asked for, the result last.

    A large picture and its results lie in temporary files beside the results: the memory does not grow with it.
    """
    bar.set_postfix_str(printable(job.source.name))
    start = bar.n
    scratch = Scratch(args.output)
    picture = read_picture(job.source, scratch=scratch)
    check_colours(picture, job.result)  # now, not when hours have gone into it
    size = picture.pixels.shape[:2]
    allocate = scratch.empty if size[0] * size[1] > LARGE else np.empty

    def progress(done: int, total: int) -> None:
        scratch.release()
        bar.update(start + done / total - bar.n)

    tile = restorer.choose_tile(args.tile, *size, overlap=args.overlap)
    while True:
        try:
            refined, uncertainty = restorer.restore_pixels(
                picture.pixels,
                task=args.task,
                tile=tile,
                overlap=args.overlap,
                strength=args.strength,
                highlights=args.highlights,
                haze=args.haze,
                with_uncertainty=job.uncertainty is not None,
                allocate=allocate,
                progress=progress,
            )
            break
        except (MemoryError, RuntimeError) as error:
            tile = _smaller(tile, size)
            if tile is None or not out_of_memory(error):
                raise
        restorer.free_memory()  # out of the handler, where the error holds the tensors that were too large
    if job.compare:
        write_comparison(picture, refined, job.compare, allocate=allocate, progress=scratch.release)
    if job.uncertainty and job.values and uncertainty is not None:
        write_uncertainty(uncertainty, job.values, job.uncertainty, allocate=allocate, progress=scratch.release)
    write_picture(picture._replace(pixels=refined), job.result, quality=args.quality, progress=scratch.release)


if __name__ == "__main__":
    sys.exit(main())
