# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (huggingface_hub is annotated in part)
"""Have a model of the Hugging Face hub here: `python -m protocols.sharding.hub ID FOLDER`.

ID is ORG/NAME or ORG/NAME@REVISION. A whole copy in the hub's own cache is used as it is, and
nobody is asked; else what is missing is downloaded into that cache, as any program there would, and
an interrupted download goes on where it was. Only data comes: safetensors, JSON, tokenizer files;
never pickles, never programs. Writes `download.json` (a `Download`) and the progress to FOLDER.
"""

import re
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from protocols.sharding.manifest import CONFIG
from protocols.sharding.source import checkpoint_files
from protocols.sharding.splitting import (
    DOWNLOAD,
    TELL_INTERVAL_S,
    Download,
    Teller,
    Unsuitable,
    missing_room,
    write,
)
from shoal.lifeline import watch

HUB_ID = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,128}))?")
WANTED = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
# Of folders in it, adapters, and the same weights in their maker's own format.
UNWANTED = ["*/*", "adapter_*", "consolidated*"]


def download(hub_id: str, folder: Path) -> Path:
    """Return a folder with the model; `folder` gets the progress. Raises Unsuitable, OSError."""
    match = HUB_ID.fullmatch(hub_id)
    if match is None:
        raise Unsuitable(f"{hub_id[:200]!r} is neither ORG/NAME nor ORG/NAME@REVISION")
    options = {"repo_id": match[1], "revision": match[2], "allow_patterns": WANTED}
    options["ignore_patterns"] = UNWANTED
    found = _cached(options)
    if found is not None:
        return found
    try:
        return _download(options, folder)
    except (HfHubHTTPError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DryRunError) else error
        raise Unsuitable(_why(hub_id, cause or error)) from error


def _why(hub_id: str, error: BaseException) -> str:
    """Return what kept us from downloading, and what to do."""
    match error:
        case GatedRepoError():
            hint = "accept its terms on the hub, and start the daemon with HF_TOKEN set"
            return f"{hub_id} is given to whom its makers allow only: {hint}"
        case RevisionNotFoundError():
            return f"the hub has no such revision of {hub_id}"
        case RepositoryNotFoundError():
            return f"the hub has no {hub_id}; if it is private, start the daemon with HF_TOKEN set"
        case _:
            where = f"{hub_id} is not in the hub's cache here, and the hub cannot be reached"
            return f"{where} ({_line(error)}); copy its folder here and add that"


def _cached(options: dict[str, Any]) -> Path | None:
    """Return the folder of a whole copy in the cache. Raises Unsuitable if it is of no use."""
    try:
        folder = Path(snapshot_download(local_files_only=True, **options))
    except LocalEntryNotFoundError:
        return None
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if (folder / CONFIG).is_file():
        try:
            checkpoint_files(folder)
        except Unsuitable:
            pass  # interrupted, or fetched in part by another program
        else:
            return folder
    if ggufs:
        raise Unsuitable(_only_gguf(options["repo_id"], ggufs, f"`shoal model add {folder}/FILE`"))
    return None


def _download(options: dict[str, Any], folder: Path) -> Path:
    files = snapshot_download(dry_run=True, **options)
    if not any(file.filename.endswith(".safetensors") for file in files):
        names = HfApi().list_repo_files(options["repo_id"], revision=options["revision"])
        repo, ggufs = options["repo_id"], sorted(name for name in names if name.endswith(".gguf"))
        if ggufs:
            hint = f"`hf download {repo} FILE`, then `shoal model add` the path that it prints"
            raise Unsuitable(_only_gguf(repo, ggufs, hint))
        raise Unsuitable(f"{repo} has no .safetensors file (other formats can run programs)")
    todo = sum(file.file_size or 0 for file in files if file.will_download)
    total = sum(file.file_size or 0 for file in files)
    cache = Path(constants.HF_HUB_CACHE)
    if lack := missing_room(todo, shutil.disk_usage(_existing(cache)).free):
        raise Unsuitable(f"{lack} (in {cache})")
    place = cache / f"models--{options['repo_id'].replace('/', '--')}" / "blobs"
    with _telling(Teller(folder, total), place, total):
        return Path(snapshot_download(**options))


def _only_gguf(repo: str, ggufs: list[str], hint: str) -> str:
    more = f" and {len(ggufs) - 3} more" if len(ggufs) > 3 else ""
    return f"{repo} has .gguf files only ({', '.join(ggufs[:3])}{more}): choose one, {hint}"


def _existing(path: Path) -> Path:
    """Return the nearest folder above that is there."""
    return path if path.exists() else _existing(path.parent)


@contextmanager
def _telling(teller: Teller, place: Path, total_bytes: int) -> Generator[None]:
    """Tell again and again how much is there: the sizes of its files, finished or not."""
    over = Event()

    def tell() -> None:
        while not over.wait(TELL_INTERVAL_S):
            sizes = [path.stat().st_size for path in place.glob("*") if path.is_file()]
            teller.tell(min(total_bytes, sum(sizes)))

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:150]}" if lines else type(error).__name__


def main(hub_id: str, folder: str) -> int:
    """Download, write the result last; return the exit status."""
    try:
        result, status = Download(path=str(download(hub_id, Path(folder)))), 0
    except Unsuitable as error:
        result, status = Download(error=str(error)), 2
    except Exception as error:  # the outermost boundary: its HTTP library has errors of its own
        result, status = Download(error=f"{hub_id} was not downloaded: {_line(error)}"), 2
    write(Path(folder) / DOWNLOAD, result)
    return status


if __name__ == "__main__":
    watch()  # it ends with the daemon
    sys.exit(main(*sys.argv[1:]))
