"""What `shoal train` is given: a run file (TOML), or a script with or without one beside it."""

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ClientError

Config = dict[str, Any]
_KEY = "run.strategy"
_EXAMPLE = "see configs/runs/shakespeare.toml"


class BadRunFile(ClientError):
    """The run file or a change to it makes no sense."""

    code = "usage"
    exit_code = 2


@dataclass(frozen=True)
class Source:
    """What to train: its script, the name its file gives it, and what the script will read."""

    name: str
    script: Path
    config: Config


def read_source(path: Path, changes: tuple[str, ...] = (), strategy: str | None = None) -> Source:
    """Read a run file, or a script and the run file beside it, if there is one.

    Without a run file a change may set any key. `strategy` takes the place of run.strategy.
    Raises BadRunFile.
    """
    if path.suffix != ".py":
        config = read_run_file(path, changes, strategy)
        script = (path.parent / str(config["run"].get("script", f"{path.stem}.py"))).resolve()
        if not script.is_file():
            raise BadRunFile(f"{path} names the script {script}, which is not there")
    else:
        script, beside = path.resolve(), path.with_suffix(".toml")
        is_free = not beside.is_file()
        config = (
            _made_of(changes, strategy) if is_free else read_run_file(beside, changes, strategy)
        )
    return Source(str(config["run"].get("name", path.stem)), script, config)


def read_run_file(path: Path, changes: tuple[str, ...] = (), strategy: str | None = None) -> Config:
    """Read a run file and apply `section.key=value` changes. Raises BadRunFile.

    A change may also name an option of the run's strategy that the file does not have.
    """
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRunFile(f"{path}: {error}") from error
    if not isinstance(config.get("run"), dict):
        raise BadRunFile(f"{path} has no section [run]", hint=_EXAMPLE)
    options = _choose_strategy(config, strategy, changes)
    for change in changes:
        _apply(config, change, options)
    return config


def _choose_strategy(config: Config, given: str | None, changes: tuple[str, ...]) -> Config:
    """Set run.strategy; return its options with their defaults.

    What is not set stays unset: the trainer's defaults depend on the wire. Options in [strategy]
    of the strategy that the file had, and that the new one has not, are left out.
    """
    said = [text for key, _, text in (each.partition("=") for each in changes) if key == _KEY]
    before = config["run"].get("strategy")
    name = given or (said[-1].strip("\"' ") if said else before)
    if name is None:
        return {}
    from shoal.learn.names import STRATEGIES, options_of  # numpy: not for every command

    if name not in STRATEGIES:
        nearest = difflib.get_close_matches(str(name), STRATEGIES, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(STRATEGIES)}"
        raise BadRunFile(f"there is no strategy {name}", hint=hint)
    options, asked = options_of(name), config.get("strategy", {})
    for option in asked if name == before else ():
        if option not in options:
            raise BadRunFile(
                f"[strategy] {option}: {name} has no such option",
                hint=f"it has {', '.join(options)}",
            )
    config["run"]["strategy"] = name
    config["strategy"] = {key: value for key, value in asked.items() if key in options}
    return dict(options)


def _made_of(changes: tuple[str, ...], strategy: str | None) -> Config:
    config: Config = {"run": {}}
    options = _choose_strategy(config, strategy, changes)
    for change in changes:
        section, name, text = _split(change)
        if options and section == "strategy":
            _apply(config, change, options)
        else:
            config.setdefault(section, {})[name] = _any_value(text)
    return config


def _apply(config: Config, change: str, options: Config) -> None:
    """Make one change; `options` of the strategy count as in the file."""
    section, name, text = _split(change)
    tables: dict[str, Config] = {k: v for k, v in config.items() if isinstance(v, dict)}
    if options:
        tables["strategy"] = {**options, **tables["strategy"]}
    known = [f"{table}.{key}" for table in tables for key in tables[table]]
    key = f"{section}.{name}"
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
        raise BadRunFile(f"--set {change}: the file has no {key}", hint=hint)
    config[section][name] = _value(text, tables[section][name], change)


def _split(change: str) -> tuple[str, str, str]:
    key, equals, text = change.partition("=")
    section, _, name = key.strip().partition(".")
    if not equals or not name or not section:
        raise BadRunFile(f"--set {change}: not SECTION.KEY=VALUE", hint="--set run.rounds=20")
    return section, name, text.strip()


def _value(text: str, old: object, change: str) -> object:
    """Parse a value of the type that the file has there."""
    if isinstance(old, str) and not re.match(r"[\"']", text):
        return text
    try:
        new = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise BadRunFile(f"--set {change}: {error}") from error
    if isinstance(old, float) and isinstance(new, int):
        return float(new)
    if type(new) is not type(old):
        raise BadRunFile(f"--set {change}: a {type(old).__name__} is expected, like {old!r}")
    return new


def _any_value(text: str) -> object:
    """Parse a value of no known type: what is no TOML is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
