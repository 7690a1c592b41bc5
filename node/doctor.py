"""What `shoal doctor` looks at on this machine, with or without a daemon.

Each look is one function that returns a `Check`. torch is asked in a process of its own: nothing
here may import it.
"""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import msgspec

from node.config import Config
from node.home import Home
from node.startup import load_config
from shoal.reach import Check
from wire.errors import UsageError

DISK_FAIL_BYTES = 100 * 2**20  # the log and the store stop soon
DISK_WARN_BYTES = 2**30  # below it no blob or model part is fetched (DISK_RESERVE_BYTES)
LAG_WARN_MS = 250.0  # every peer's answer is that late
TORCH_S = 60.0  # its import takes a second, and half a minute on a cold disk
_PRIVATE = 0o077  # bits that a file with a secret in it has not

_ASK_TORCH = """
import json, torch
found = torch.cuda.is_available()
name = torch.cuda.get_device_name(0) if found else ""
count = torch.cuda.device_count() if found else 0
print(json.dumps([torch.__version__, count, name, torch.get_num_threads()]))
"""


class _Torch(msgspec.Struct, array_like=True):
    version: str
    devices: int
    name: str
    threads: int


def machine(home: Home) -> list[Check]:
    """Look at the state directory, the configuration and torch."""
    configuration, config = check_configuration(home)
    device = config.serve.device if config is not None else "auto"
    return [check_home(home), check_disk(home), configuration, check_torch(device)]


def check_daemon(state: str, lag_ms: float, version: str, ours: str) -> Check:
    """Judge what a daemon that answers says of itself; `ours` is this program's version."""
    text = f"{state}, version {version}, event loop at most {lag_ms:.0f} ms late"
    if state != "ready":
        return Check("daemon", "warn", text, "wait a moment; `shoal logs` says what it does")
    if version != ours:
        fix = "`shoal down`, then `shoal up`"
        return Check("daemon", "warn", f"{text}; this command is version {ours}", fix)
    if lag_ms >= LAG_WARN_MS:
        fix = "the machine is busy: fewer threads for training or serving (serve.threads)"
        return Check("daemon", "warn", text, fix)
    return Check("daemon", "ok", text)


def no_daemon(why: str) -> Check:
    """Say that none answers; the network cannot be judged without one."""
    return Check("daemon", "fail", f"{why}: the network was not looked at", "`shoal up --detach`")


def check_home(home: Home) -> Check:
    """Judge whether others on this machine can read the secrets."""
    name = "home"
    if not home.path.exists():
        return Check(name, "ok", f"{home.path} is made by the first `shoal up`")
    secrets = (home.path, home.identity, home.swarm, home.token, home.config)
    loose = [path for path in secrets if path.exists() and _mode(path) & _PRIVATE]
    loose = [path for path in loose if path != home.config or _mode(path) & 0o022]
    if loose:
        shown = " ".join(str(path) for path in loose)
        text = f"others on this machine may read or change {shown}"
        return Check(name, "fail", text, f"chmod go= {shown}")
    return Check(name, "ok", f"{home.path}, for this user only")


def check_disk(home: Home) -> Check:
    """Judge the room on the disk of the state directory."""
    place = next(path for path in (home.path, *home.path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / 2**30:.1f} GiB free at {place}"
    fix = "`shoal blobs gc` throws away what is not pinned; or another --home DIR"
    if free < DISK_FAIL_BYTES:
        return Check("disk", "fail", text, fix)
    if free < DISK_WARN_BYTES:
        return Check("disk", "warn", f"{text}: too little to fetch blobs or models", fix)
    return Check("disk", "ok", text)


def check_configuration(home: Home) -> tuple[Check, Config | None]:
    """Judge node.toml and the environment; return the options too, if they are valid."""
    name = "configuration"
    try:
        loaded = load_config(home, file=None)
    except UsageError as error:
        return Check(name, "fail", str(error), error.hint or f"edit {home.config}"), None
    changed = [one.key for one in loaded.settings if one.origin != "default"]
    text = f"valid; not at their defaults: {', '.join(changed)}" if changed else "all defaults"
    return Check(name, "ok", text), loaded.config


def check_torch(device: str) -> Check:
    """Ask a process of its own what torch computes on; `device` is serve.device."""
    name = "torch"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=TORCH_S,
            check=False,
        )
        found = msgspec.json.decode(done.stdout, type=_Torch)
    except subprocess.TimeoutExpired:
        return Check(name, "warn", f"did not answer within {TORCH_S:.0f} s", "look at the disk")
    except (OSError, msgspec.DecodeError):
        text = "not there: this node cannot train or serve, but do all else"
        return Check(name, "warn", text, "pip install torch, into Shoal's environment")
    if found.devices:
        return Check(name, "ok", f"{found.version}, {found.devices} x CUDA ({found.name})")
    text = f"{found.version} on the processor, {found.threads} threads"
    if device == "cuda":
        return Check(name, "fail", f"{text}; serve.device wants cuda", 'serve.device = "auto"')
    return Check(name, "ok", text)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
