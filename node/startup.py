"""From flags to a running daemon: everything that can be refused before the event loop starts."""

import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from node.config import Loaded, load
from node.home import Home
from node.identity import load_or_make_identity
from node.logs import open_logs
from node.tickets import Ticket, fresh_swarm, load_swarm, parse_ticket, save_swarm
from wire.errors import UsageError

_NAME_MAX = 64  # characters of a node's or swarm's name


@dataclass(frozen=True)
class Wish:
    """What the caller of `shoal up` asked for."""

    home: Path
    config_file: Path | None
    flags: Mapping[str, object]
    join: str | None = None
    in_background: bool = False  # then nothing reads standard error: log to the file only


def load_config(
    home: Home, *, file: Path | None, flags: Mapping[str, object] | None = None
) -> Loaded:
    """Load the configuration of a home; `file` stands in for HOME/node.toml."""
    chosen = file if file is not None else home.config if home.config.exists() else None
    return load(file=chosen, environment=os.environ, flags=flags or {})


def choose_swarm(home: Home, joining: Ticket | None) -> Ticket:
    """Return the home's swarm; make one, or take the ticket's, if there is none yet.

    Raises UsageError if the home belongs to another swarm than the ticket's.
    """
    mine = load_swarm(home.swarm)
    if joining is None:
        if mine is None:
            mine = fresh_swarm(default_swarm_name())
            save_swarm(home.swarm, mine)
        return mine
    if mine is not None and (mine.swarm_name, mine.key) != (joining.swarm_name, joining.key):
        raise UsageError(
            f"{home.path} belongs to swarm {mine.swarm_name!r}; "
            f"the ticket is for {joining.swarm_name!r}",
            hint="use another --home DIR, or leave that swarm: `shoal init --force --join TICKET`",
        )
    save_swarm(home.swarm, joining)
    return joining


def default_swarm_name() -> str:
    """Name a swarm after this machine, with a tail that keeps two apart."""
    return f"{host_name()[: _NAME_MAX - 5]}-{secrets.token_hex(2)}"


def host_name() -> str:
    """Return the machine's name in printable characters."""
    return "".join(c for c in socket.gethostname() if c.isprintable())[:_NAME_MAX] or "node"


def check(wish: Wish) -> tuple[Home, Loaded, Ticket | None]:
    """Read what the flags name; raise UsageError for what is wrong. Writes nothing."""
    joining = parse_ticket(wish.join) if wish.join is not None else None
    home = Home(wish.home.absolute())
    return home, load_config(home, file=wish.config_file, flags=wish.flags), joining


def start(wish: Wish, on_ready: Callable[[str, list[str], str], None]) -> None:
    """Run the daemon until it is told to stop.

    `on_ready` gets the peer ID, the addresses and the swarm's name. What is wrong with the wish
    is raised before anything is written.
    """
    home, loaded, joining = check(wish)
    os.umask(0o077)  # whatever any part writes is for this user only
    home.make()
    with home.lock():
        swarm = choose_swarm(home, joining)
        signer, seed = load_or_make_identity(home.identity)
        options = loaded.config.log
        stream = None if wish.in_background else sys.stderr
        logs = open_logs(home.log, level=options.level, format_=options.format, stream=stream)
        name = loaded.config.node.name or host_name()
        from node.daemon import run  # libp2p takes 0.9 s: only now, when all is well
        from node.parts import Start

        run(Start(home, loaded, swarm, signer, seed, name, logs), on_ready)


def make_swarm(home: Home, *, name: str | None, join: str | None, force: bool) -> Ticket:
    """Give a home a new swarm, or with `join` that of a ticket. Raises UsageError, AlreadyRunning.

    With `force` it leaves the swarm it has: what the store says of that one is removed.
    """
    swarm = parse_ticket(join) if join is not None else fresh_swarm(name or default_swarm_name())
    home.make()
    with home.lock():
        mine = load_swarm(home.swarm)
        if mine is not None and not force:
            raise UsageError(
                f"{home.path} belongs to swarm {mine.swarm_name!r} already",
                hint="`shoal init --force` leaves it",
            )
        told = (home.store, *home.path.glob(f"{home.store.name}-*"), home.peers, home.dht)
        for path in told:
            path.unlink(missing_ok=True)
        save_swarm(home.swarm, swarm)
    return swarm
