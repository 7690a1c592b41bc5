"""`shoal demo`: the whole of Shoal on one machine, in one command that checks what it shows."""

import shutil
import sys
from pathlib import Path

import click

DISK_NEEDED_BYTES = 2 * 1024**3  # four homes with a small model each; smollm2 takes 1.5 GB


@click.command()
@click.option(
    "--model", type=click.Choice(["shakespeare", "smollm2"]), default="shakespeare",
    show_default=True, help="What to serve at the end: the model just trained, or SmolLM2-135M.",
)  # fmt: skip
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-out"),
    show_default=True, help="Where the four homes, the logs and the picture go; emptied first.",
)  # fmt: skip
def demo(model: str, folder: Path) -> None:
    """Start four daemons here, train, kill one, take it back, serve: all of it checked.

    Takes a few minutes, needs no network and leaves nothing running.
    """
    from node.demo.story import tell
    from node.demo.swarm import DemoFailed
    from node.demo.training import CONFIG

    if not CONFIG.is_file():
        raise click.UsageError("the demo needs a clone of the repository: try `make demo` there")
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / "ash").exists():
        raise click.UsageError(f"{folder} is not empty and not of an earlier demo; name another")
    if shutil.disk_usage(folder.parent).free < DISK_NEEDED_BYTES:
        raise click.UsageError(f"{folder.parent} has less than 2 GiB free; name another --folder")
    try:
        tell(folder, model)
    except DemoFailed as error:
        click.echo(f"error: {error}\n  try: the logs in {folder}", err=True)
        sys.exit(1)


COMMANDS: dict[str, click.Command] = {"demo": demo}
