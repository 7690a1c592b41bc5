"""The configuration: defaults < node.toml < environment SHOAL_SECTION__KEY < flags.

Options are the fields of the structs below; their description and bounds are in their types, from
which `configs/node.toml` and `shoal config init` are generated. Unknown keys name the nearest one.
"""

import difflib
import ipaddress
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from node.host.addresses import ADDRESS_MAX, parse_address
from node.host.gate import CONNECTIONS_MAX
from node.logs import Format, Level
from shoal.api import Setting
from wire.errors import BadMessage, UsageError

FILE_MAX_BYTES = 64 * 1024  # bytes; the full commented file has 3 KiB
ENVIRONMENT_PREFIX = "SHOAL_"

_Listen = Annotated[str, Meta(max_length=ADDRESS_MAX)]


class NodeOptions(msgspec.Struct, frozen=True):
    """Section [node]: who this is."""

    name: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description='What people call this node; "" is the machine\'s host name.',
        ),
    ] = ""


class NetOptions(msgspec.Struct, frozen=True):
    """Section [net]: how peers reach it."""

    listen: Annotated[
        list[_Listen],
        Meta(
            min_length=1,
            max_length=16,
            description="Multiaddrs to listen on. TCP port 0 lets the system choose.",
        ),
    ] = msgspec.field(default_factory=lambda: ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"])
    mdns: Annotated[
        bool, Meta(description="Find members of the same swarm on the local network.")
    ] = True
    max_connections: Annotated[
        int,
        Meta(ge=1, le=4096, description="Connections to peers at the same time, at most."),
    ] = CONNECTIONS_MAX
    port_mapping: Annotated[
        bool, Meta(description="Ask the router to forward a port (UPnP, NAT-PMP, PCP).")
    ] = True
    relay: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="Relay for members that cannot be dialled; auto: if we can be."),
    ] = "auto"
    relay_mib_s: Annotated[
        float,
        Meta(ge=0.01, le=65536.0, description="MiB/s given to all that is relayed, together."),
    ] = 8.0


class HttpOptions(msgspec.Struct, frozen=True):
    """Section [http]: the control API on a loopback port, for dashboards and OpenAI clients."""

    listen: Annotated[
        str,
        Meta(
            max_length=64,
            description='"127.0.0.1:4090" opens it there; "" keeps it off. The token is in HOME.',
        ),
    ] = ""
    open_models: Annotated[
        bool,
        Meta(description="Programs of this machine may ask models there without the token."),
    ] = False


class ServeOptions(msgspec.Struct, frozen=True):
    """Section [serve]: what this node gives to served models."""

    offer: Annotated[bool, Meta(description="Host layers of models that members serve.")] = True
    memory_gib: Annotated[
        float,
        Meta(ge=0.0, le=65536.0, description="GiB for hosted layers; 0 is half of what is free."),
    ] = 0.0
    cache_share: Annotated[
        float,
        Meta(ge=0.01, le=0.9, description="Share of that memory for the caches of sessions."),
    ] = 0.25
    codec: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        Meta(description="Activations between nodes, for what is asked here; auto: by the link."),
    ] = "auto"
    audit: Annotated[
        float,
        Meta(ge=0.0, le=1.0, description="Share of sessions that another node computes again."),
    ] = 0.05
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="Where layers are computed.")
    ] = "auto"
    threads: Annotated[
        int, Meta(ge=1, le=256, description="Of each process that computes layers.")
    ] = 1


class BlobOptions(msgspec.Struct, frozen=True):
    """Section [blobs]: files and folders shared by their content."""

    quota_gib: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1_048_576.0,
            description="GiB for blobs; 0 is half of what was free when the daemon started.",
        ),
    ] = 0.0
    upload_mib_s: Annotated[
        float,
        Meta(ge=0.0, le=1_048_576.0, description="MiB/s given to all peers together; 0: no limit."),
    ] = 0.0


class DhtOptions(msgspec.Struct, frozen=True):
    """Section [dht]: finding peers and content."""

    public: Annotated[
        bool,
        Meta(description="Speak /ipfs/kad/1.0.0 with other libp2p programs (open swarms)."),
    ] = False


class LogOptions(msgspec.Struct, frozen=True):
    """Section [log]: the daemon's log."""

    level: Annotated[Level, Meta(description="debug, info, warning or error.")] = "info"
    format: Annotated[Format, Meta(description="logfmt for people, json for machines.")] = "logfmt"


class Config(msgspec.Struct, frozen=True):
    """All options, by section."""

    node: NodeOptions = msgspec.field(default_factory=NodeOptions)
    net: NetOptions = msgspec.field(default_factory=NetOptions)
    http: HttpOptions = msgspec.field(default_factory=HttpOptions)
    serve: ServeOptions = msgspec.field(default_factory=ServeOptions)
    blobs: BlobOptions = msgspec.field(default_factory=BlobOptions)
    dht: DhtOptions = msgspec.field(default_factory=DhtOptions)
    log: LogOptions = msgspec.field(default_factory=LogOptions)


@dataclass(frozen=True)
class Option:
    """One option as declared."""

    key: str  # "net.listen"
    type: object
    default: object
    description: str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "__")


@dataclass(frozen=True)
class Loaded:
    """The effective configuration, and where each value came from."""

    config: Config
    settings: tuple[Setting, ...]


def options() -> list[Option]:
    """Return every option, in the order of the file."""
    return [option for _, section in sections() for option in section]


def sections() -> Iterator[tuple[type[msgspec.Struct], list[Option]]]:
    """Yield every section's struct with its options."""
    for section in msgspec.structs.fields(Config):
        struct = typing.cast("type[msgspec.Struct]", section.type)
        rows = [
            Option(f"{section.name}.{field.encode_name}", field.type, _default(field), _text(field))
            for field in msgspec.structs.fields(struct)
        ]
        yield struct, rows


def load(
    *,
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, object],
) -> Loaded:
    """Merge the layers. `flags` has keys such as "net.listen". Raises UsageError, one line."""
    known = {option.key: option for option in options()}
    values = {key: option.default for key, option in known.items()}
    origins = dict.fromkeys(known, "default")

    def apply(key: str, value: object, origin: str, *, strict: bool = True) -> None:
        values[key] = _checked(known[key], value, origin, strict=strict)
        origins[key] = origin

    if file is not None:
        for key, value in read_file(file).items():
            apply(key, value, f"file {file}")
    for key, (variable, text) in _from_environment(environment, known).items():
        value = [part.strip() for part in text.split(",")] if _is_list(known[key]) else text
        apply(key, value, f"env {variable}", strict=False)
    for key, value in flags.items():
        apply(key, value, "flag")
    nested: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    settings = tuple(Setting(key, values[key], origins[key]) for key in known)
    return Loaded(msgspec.convert(nested, Config), settings)


def read_file(path: Path) -> dict[str, object]:
    """Parse a configuration file into {"net.listen": value}. Unknown keys are a UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    if len(data) > FILE_MAX_BYTES:
        raise UsageError(
            f"{path} is no configuration: over {FILE_MAX_BYTES} B",
            hint="`shoal config init` writes one with every option",
        )
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is no TOML: {reason}") from error
    known = [option.key for option in options()]
    names = {key.partition(".")[0] for key in known}
    found: dict[str, object] = {}
    for section, body in document.items():
        if section not in names:
            raise _unknown(section, str(path), sorted(names) + known)
        if not isinstance(body, dict):
            raise UsageError(f"{path}: {section} is a section: write [{section}]")
        for name, value in typing.cast("dict[str, object]", body).items():
            key = f"{section}.{name}"
            if key not in known:
                raise _unknown(key, str(path), known)
            found[key] = value
    return found


def render_file() -> str:
    """Write node.toml: every option, commented out, with its default and description."""
    lines = [
        "# Options of the shoal daemon. Every line that is commented out shows the default.",
        "# Flags win over environment variables (SHOAL_NET__MDNS=false), which win over this file.",
    ]
    for struct, rows in sections():
        section = rows[0].key.partition(".")[0]
        _, _, about = (struct.__doc__ or "").strip().partition(": ")
        lines += ["", f"[{section}]  # {about}"]
        for option in rows:
            name = option.key.partition(".")[2]
            lines += [f"# {option.description}", f"# {name} = {_toml(option.default)}"]
    return "\n".join(lines) + "\n"


def http_address(text: str) -> tuple[str, int] | None:
    """Parse http.listen; None is off. Raises UsageError unless it is a loopback address."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    wanted = 'use "127.0.0.1:PORT"; other machines come in through a tunnel'
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UsageError(f"{text!r} is not HOST:PORT", hint=wanted) from error
    if not local:
        raise UsageError(f"{host} is not a loopback address", hint=wanted)
    if not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{port[:16]!r} is not a port", hint=wanted)
    return "127.0.0.1" if host == "localhost" else host, int(port)


def _checked(option: Option, value: object, origin: str, *, strict: bool) -> object:
    try:
        checked = msgspec.convert(value, typing.cast("type[object]", option.type), strict=strict)
        if option.key == "net.listen":
            for address in typing.cast("list[str]", checked):
                parse_address(address)
        if option.key == "http.listen":
            http_address(typing.cast("str", checked))
    except (msgspec.ValidationError, BadMessage, UsageError) as error:
        hint = getattr(error, "hint", "")
        raise UsageError(f"{origin}: {option.key}: {error}", hint=hint) from error
    return checked


def _from_environment(
    environment: Mapping[str, str], known: Mapping[str, Option]
) -> dict[str, tuple[str, str]]:
    variables = {option.variable: key for key, option in known.items()}
    found: dict[str, tuple[str, str]] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
            continue  # SHOAL_HOME and the like are no options of the file
        if variable not in variables:
            raise _unknown(variable, "the environment", list(variables))
        found[variables[variable]] = (variable, text)
    return found


def _unknown(key: str, where: str, known: list[str]) -> UsageError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return UsageError(f"{where}: unknown option {key[:64]!r}", hint=f"did you mean {near[0]!r}?")


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _text(field: msgspec.structs.FieldInfo) -> str:
    for meta in typing.get_args(field.type)[1:]:
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    raise AssertionError(f"option {field.name} has no description")


def _is_list(option: Option) -> bool:
    return isinstance(option.default, list)


def _toml(value: object) -> str:
    return msgspec.json.encode(value).decode().replace('","', '", "')
