"""Parameters and MACs of the model variants: ``python -m opir_lightning.count [VARIANT...] [key=value ...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from opir_lightning.config import config_dir, register_schemas
from opir_lightning.errors import UserError
from opir_lightning.threads import limit_spinning


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m opir_lightning.count", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="VARIANT", help="files in conf/model; all of them if none is named")
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels (default 256)")
    arguments = parser.parse_args(argv)
    limit_spinning()
    variants = [name for name in arguments.names if "=" not in name]
    overrides = [name for name in arguments.names if "=" in name]
    try:
        if arguments.size < 1:
            raise UserError(f"--size is {arguments.size}; it must be a number of pixels.")
        if chosen := [override for override in overrides if override.startswith("model=")]:
            name = chosen[0].removeprefix("model=")
            raise UserError(f"{chosen[0]} would be counted for every variant; name the variant itself: {name}")
        _print(variants or _variants(), overrides, arguments.size)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _variants() -> list[str]:
    return sorted(path.stem for path in (Path(config_dir()) / "model").glob("*.yaml"))


def _print(variants: Sequence[str], overrides: Sequence[str], size: int) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from rich.console import Console
    from rich.table import Table

    from opir_lightning.complexity import count
    from opir_lightning.config import build, check_keys

    table = Table(title=f"{size}x{size}, both stages, blind; one multiply-add is one MAC")
    for column in ("variant", "parameters", "MACs", "sees (pixels around)"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    register_schemas()
    for name in variants:
        with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
            try:
                config = compose("train", [f"model={name}", "run_dir=.", *overrides])
            except HydraException as error:
                raise UserError(str(error).splitlines()[0]) from error
        net = build(check_keys(config)["model"], "model")
        parameters, macs = count(net, size)
        table.add_row(name, f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.2f} G", str(net.receptive_field))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
