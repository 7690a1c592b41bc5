"""From a source of a model to its parts in a folder, by children that import torch and the hub."""

import re
from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from node.children import open_child
from node.model_workers import ENVIRONMENT, GRACE_S, last_line, python
from protocols.sharding.manifest import DTYPES
from protocols.sharding.records import is_name
from protocols.sharding.splitting import (
    DOWNLOAD,
    PROGRESS,
    RESULT,
    Download,
    Progress,
    Split,
    read,
)
from shoal.library import AddModel
from wire.errors import ShoalError, UsageError

LOOK_S = 0.25  # between two looks at what a child says of its progress
STALL_S = 1800.0  # without any: a model that is loaded as a whole says nothing meanwhile
HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(@[\w./-]{1,128})?")
PATH_MAX = 4096  # characters of a source; what Linux takes
Report = Callable[[str, int, int], object]  # state, bytes done, bytes in all (0: not known)

# Only the download asks the hub, unless the user has forbidden it in the daemon's environment.
ONLINE = {key: value for key, value in ENVIRONMENT.items() if not key.endswith("_OFFLINE")} | {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # for terminals; what it says goes to a log
}

_log = structlog.get_logger("models")


async def parts_of(source: str, dtype: str, scratch: Path, log_path: Path, report: Report) -> Split:
    """Cut a source into parts in `scratch`, downloading it first if it is a name of the hub.

    source: an absolute path, or ORG/NAME[@REVISION]. Raises UsageError if it is no model that can
    be had and cut, ShoalError if a child ends without a word.
    """
    folder = Path(source)
    if not folder.is_absolute():
        argv = python("protocols.sharding.hub", source, str(scratch))
        await _run(argv, ONLINE, "downloading", scratch, log_path, report)
        found = read(scratch / DOWNLOAD, Download)
        if found is None:
            raise ShoalError(f"the download ended without a word: {last_line(log_path)}")
        if found.error:
            raise UsageError(found.error)
        _log.info("model.downloaded", source=source, path=found.path)
        folder = Path(found.path)
    argv = python("protocols.sharding.split", str(folder), str(scratch), dtype)
    await _run(argv, ENVIRONMENT, "splitting", scratch, log_path, report)
    split = read(scratch / RESULT, Split)
    if split is None:
        raise ShoalError(f"the splitter ended without a word: {last_line(log_path)}")
    if split.error:
        raise UsageError(split.error)
    return split


async def _run(
    argv: list[str],
    env: dict[str, str],
    state: str,
    scratch: Path,
    log_path: Path,
    report: Report,
) -> None:
    """Run a child to its end, telling what it says of its progress; cancelling ends it."""
    (scratch / PROGRESS).unlink(missing_ok=True)
    told, told_at = Progress(), trio.current_time()
    report(state, 0, 0)
    async with open_child(argv, env=env, log_path=log_path, grace_s=GRACE_S) as child:
        while child.returncode is None:
            with trio.move_on_after(LOOK_S):
                await child.wait()
            now = read(scratch / PROGRESS, Progress)
            if now is not None and now != told:
                told, told_at = now, trio.current_time()
                report(state, told.done_bytes, told.total_bytes)
            if trio.current_time() - told_at > STALL_S:
                raise ShoalError(f"{state}: nothing has happened for {STALL_S:.0f} s")


def checked(request: AddModel, *, is_made: bool) -> tuple[str, str]:
    """Return the source and the name of a model to be added. Raises UsageError."""
    source = request.source
    if request.dtype not in ("auto", *DTYPES):
        raise UsageError(f"{request.dtype[:20]!r} is none of auto, {', '.join(DTYPES)}")
    if not (0 <= request.nodes <= 512 and 1 <= request.replicas <= 64):
        raise UsageError(f"{request.nodes} nodes, {request.replicas} replicas: no such number")
    path = Path(source[:PATH_MAX]).expanduser()
    if is_made:
        stem = request.name
    elif path.is_absolute():
        if not path.exists():
            raise UsageError(f"{path} does not exist on the daemon's machine")
        source, stem = str(path), path.stem if path.suffix == ".gguf" else path.name
    elif HUB_ID.fullmatch(source):
        stem = source.partition("@")[0].rpartition("/")[2]
    else:
        hint = "`shoal model ls` lists models by name; ORG/NAME is one of the Hugging Face hub"
        raise UsageError(f"{source[:200]!r} is neither an absolute path nor ORG/NAME", hint=hint)
    name = request.name or name_of(stem)
    if not is_name(name):
        raise UsageError(f"{name[:64]!r} cannot be a model's name: letters, digits, . _ - only")
    return source, name


def name_of(text: str) -> str:
    """Make a name of a text, without what a name cannot have; it may be empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63].lower()
