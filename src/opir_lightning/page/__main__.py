"""Try a model in the browser: ``python -m opir_lightning.page``, then open the address that it prints.

Neither torch nor Gradio is imported before the arguments are read, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from opir_lightning.errors import UserError
from opir_lightning.threads import limit_spinning

LOOPBACK = "127.0.0.1"
MEGAPIXELS = 64  # the most that can be allowed: beyond, the restore command keeps pictures in files, and this page not

EPILOG = """\
The page is for this machine alone unless --host says otherwise; it then has no password. Once open, it asks no other
server for anything. Pictures and results lie in a temporary folder, for about an hour, and vanish when it is closed;
beyond 4 GiB of them new ones are refused.
Exit status: 0 closed by Ctrl-C, 1 it could not be opened, 2 wrong usage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (wrong usage leaves by ``SystemExit(2)``, as argparse does)."""
    args = _parser().parse_args(argv)
    limit_spinning()
    try:
        _check_gradio()
        with tempfile.TemporaryDirectory(prefix="opir-page-") as folder:
            _serve(args, Path(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the page was open
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m opir_lightning.page",
        description="A page to try a model: restore a picture, compare, see how sure the model is and what it does.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--weights",
        metavar="NAME|FILE|OWNER/NAME",
        help="a packaged name, a .safetensors or .ckpt file, a run folder, or a model on the Hugging Face Hub "
        "(default: the best packaged ones)",
    )
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)")
    add("--host", default=LOOPBACK, help=f"address to listen at; 0.0.0.0 is all (default: {LOOPBACK}, this machine)")
    add("--port", type=_port, default=7860, metavar="N", help="default: %(default)s")
    add(
        "--megapixels",
        type=_megapixels,
        default=24,
        metavar=f"1...{MEGAPIXELS}",
        help="larger pictures are refused (default: %(default)s)",
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 65535")
    return int(text)


def _megapixels(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MEGAPIXELS:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to {MEGAPIXELS}")
    return int(text)


def _check_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise UserError("The page needs Gradio: pip install 'opir-lightning[demo]'.")


def _serve(args: argparse.Namespace, folder: Path) -> None:
    """Open the page and wait until the program is to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder goes in any case
    from opir_lightning.checkpoints import default_weights
    from opir_lightning.inference import exact_float32
    from opir_lightning.restorer import Restorer

    weights = default_weights() if args.weights is None else args.weights
    exact_float32()
    restorer = Restorer.from_pretrained(weights, device=args.device)
    # Gradio reads all of these while it is imported; the weights, which may come from the hub, are there by now.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ.setdefault("NO_PROXY", f"localhost,{LOOPBACK},::1")  # it asks itself whether it is there
    from opir_lightning.page.layout import build, open_page

    page = build(restorer, folder=folder, most_pixels=args.megapixels * 10**6, title=f"OPIR: {Path(weights).stem}")
    most_bytes = args.megapixels * 8 * 10**6  # RGBA of 16 bits
    open_page(page, folder=folder, host=args.host, port=args.port, most_bytes=most_bytes)
    end = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: end.set())
    print(f"The page is at http://{args.host}:{args.port} until Ctrl-C.", flush=True)
    if args.host not in (LOOPBACK, "localhost", "::1"):
        print("Whoever reaches that address can use it: there is no password.", file=sys.stderr)
    end.wait()
    page.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
