"""Configuration: which layer wins, what is refused and in which words, and the shipped file."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import FILE_MAX_BYTES, Option, http_address, load, options, read_file, render_file
from node.host.gate import Limits
from wire.errors import UsageError

# One value per option, different from the default, as file text, environment text and itself.
OTHER: dict[str, tuple[str, str, object]] = {
    "node.name": ('"reef"', "reef", "reef"),
    "net.listen": (
        '["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/1"]',
        "/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/tcp/1",
        ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/1"],
    ),
    "net.mdns": ("false", "false", False),
    "net.max_connections": ("7", "7", 7),
    "net.port_mapping": ("false", "false", False),
    "net.relay": ('"off"', "off", "off"),
    "net.relay_mib_s": ("2.5", "2.5", 2.5),
    "http.listen": ('"127.0.0.1:4090"', "127.0.0.1:4090", "127.0.0.1:4090"),
    "http.open_models": ("true", "true", True),
    "serve.offer": ("false", "0", False),
    "serve.memory_gib": ("1.5", "1.5", 1.5),
    "serve.cache_share": ("0.5", "0.5", 0.5),
    "serve.codec": ('"int8"', "int8", "int8"),
    "serve.audit": ("0.5", "0.5", 0.5),
    "serve.device": ('"cpu"', "cpu", "cpu"),
    "serve.threads": ("3", "3", 3),
    "blobs.quota_gib": ("1.5", "1.5", 1.5),
    "blobs.upload_mib_s": ("20", "20", 20.0),
    "dht.public": ("true", "true", True),
    "log.level": ('"debug"', "debug", "debug"),
    "log.format": ('"json"', "json", "json"),
}
EACH = pytest.mark.parametrize("option", options(), ids=lambda option: option.key)


def write(path: Path, key: str, text: str) -> Path:
    section, _, name = key.partition(".")
    path.write_text(f"[{section}]\n{name} = {text}\n")
    return path


def value_of(key: str, **layers: object) -> tuple[object, str]:
    loaded = load(**{"file": None, "environment": {}, "flags": {}, **layers})  # type: ignore[arg-type]
    setting = next(setting for setting in loaded.settings if setting.key == key)
    section, _, name = key.partition(".")
    assert getattr(getattr(loaded.config, section), name) == setting.value
    return setting.value, setting.origin


@EACH
def test_each_layer_wins_over_the_one_below(option: Option, tmp_path: Path) -> None:
    in_file, in_environment, value = OTHER[option.key]
    file = write(tmp_path / "node.toml", option.key, in_file)
    environment = {option.variable: in_environment}
    assert value_of(option.key) == (option.default, "default")
    assert value_of(option.key, file=file) == (value, f"file {file}")
    assert value_of(option.key, file=file, environment=environment) == (
        value,
        f"env {option.variable}",
    )
    flags = {option.key: option.default}
    assert value_of(option.key, file=file, environment=environment, flags=flags) == (
        option.default,
        "flag",
    )


def test_the_shipped_file_is_the_generated_one() -> None:
    shipped = Path(__file__).parents[2] / "configs" / "node.toml"
    assert shipped.read_text() == render_file()


def test_the_generated_file_with_every_line_enabled_is_the_defaults(tmp_path: Path) -> None:
    keys = tuple(f"# {option.key.partition('.')[2]} = " for option in options())
    lines = [
        line.removeprefix("# ") if line.startswith(keys) else line
        for line in render_file().splitlines()
    ]
    file = tmp_path / "node.toml"
    file.write_text("\n".join(lines))
    assert read_file(file) == {option.key: option.default for option in options()}


def test_an_unknown_key_names_the_nearest_one(tmp_path: Path) -> None:
    file = write(tmp_path / "node.toml", "net.lisen", '["/ip4/127.0.0.1/tcp/0"]')
    with pytest.raises(UsageError, match=r"unknown option 'net.lisen'") as caught:
        load(file=file, environment={}, flags={})
    assert caught.value.hint == "did you mean 'net.listen'?"


def test_an_unknown_section_names_the_nearest_one(tmp_path: Path) -> None:
    file = write(tmp_path / "node.toml", "nett.mdns", "true")
    with pytest.raises(UsageError, match="unknown option 'nett'") as caught:
        load(file=file, environment={}, flags={})
    assert "'net'" in caught.value.hint


def test_an_unknown_variable_names_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="SHOAL_NET__MDSN") as caught:
        load(file=None, environment={"SHOAL_NET__MDSN": "1"}, flags={})
    assert "SHOAL_NET__MDNS" in caught.value.hint


def test_variables_of_other_kinds_are_left_alone() -> None:
    load(file=None, environment={"SHOAL_HOME": "/x", "SHOAL_SOCKET": "/y", "HOME": "/"}, flags={})


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("net.max_connections", '"many"', "Expected `int`, got `str`"),
        ("net.max_connections", "0", ">= 1"),
        ("net.listen", '["/ip4/127.0.0.1/udp/1"]', "not an address"),
        ("net.listen", "[]", "length >= 1"),
        ("serve.memory_gib", "nan", ">= 0"),
        ("log.level", '"loud"', "Invalid enum value 'loud'"),
        ("http.listen", '"0.0.0.0:80"', "not a loopback address"),
        ("http.listen", '"4090"', "not HOST:PORT"),
    ],
)
def test_a_wrong_value_names_file_and_key(key: str, text: str, said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "node.toml", key, text)
    with pytest.raises(UsageError) as caught:
        load(file=file, environment={}, flags={})
    message = str(caught.value)
    assert said in message
    assert key in message
    assert "\n" not in message
    assert str(file) in message


@given(st.binary(max_size=400))
def test_any_bytes_as_a_file_are_a_configuration_or_one_line(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            load(file=Path(file.name), environment={}, flags={})
        except UsageError as error:
            said = str(error)
        else:
            said = "a configuration"
        assert "\n" not in said


def test_a_mebibyte_of_garbage_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_bytes(os.urandom(1024 * 1024))
    with pytest.raises(UsageError, match=f"over {FILE_MAX_BYTES} B"):
        load(file=file, environment={}, flags={})


def test_a_deeply_nested_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("a = " + "[" * 20_000)
    with pytest.raises(UsageError, match="no TOML"):
        load(file=file, environment={}, flags={})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("localhost:1", ("127.0.0.1", 1)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:8", ("::1", 8)),
    ],
)
def test_loopback_addresses(text: str, address: tuple[str, int] | None) -> None:
    assert http_address(text) == address


def test_a_host_without_configuration_holds_as_many_connections_as_one_with_the_default() -> None:
    (option,) = [one for one in options() if one.key == "net.max_connections"]
    assert option.default == Limits().connections
    assert Limits().unadmitted <= Limits().connections // 2
