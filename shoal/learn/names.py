"""The strategies by name, as run files and the command line say them.

[run]
strategy = "diloco"

[strategy]        # options of that class, all of them optional
lr = 0.7
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import cast

from shoal.learn.averaging import DiLoCo, FedAvg, LocalSGD, Modest
from shoal.learn.dilocox import DiLoCoX
from shoal.learn.gossip import DecentralizedAdam, DecentralizedSGD, FinalMerge
from shoal.learn.overlap import EagerDiLoCo, StreamingDiLoCo
from shoal.learn.strategy import Option, Strategy, require
from shoal.learn.variance import VarianceCorrected

STRATEGIES: Mapping[str, type[Strategy]] = {
    kind.name: kind
    for kind in (
        FedAvg,
        LocalSGD,
        DiLoCo,
        StreamingDiLoCo,
        EagerDiLoCo,
        DiLoCoX,
        DecentralizedSGD,
        DecentralizedAdam,
        Modest,
        FinalMerge,
        VarianceCorrected,
    )
}


def strategy_named(name: str, **options: object) -> Strategy:
    """Make a strategy. Raises ValueError, in words for a person, for what it does not take.

    An integer is taken where a float is asked for, as in TOML files.
    """
    require(name in STRATEGIES, f"no strategy {name[:32]!r}; there are {', '.join(STRATEGIES)}")
    defaults = options_of(name)
    for option, value in options.items():
        require(option in defaults, f"{name} has no {option[:32]!r}, only {', '.join(defaults)}")
        kind = type(defaults[option])
        if kind is float and type(value) is int:
            options[option] = float(value)
        else:
            require(
                type(value) is kind, f"{option} of {name} is {kind.__name__}, not {value!r:.40}"
            )
    return STRATEGIES[name](**cast("dict[str, int]", options))  # checked against the fields


def options_of(name: str) -> dict[str, Option]:
    """Return the options of a strategy with their defaults, in the order of its fields."""
    return {f.name: cast(Option, f.default) for f in fields(STRATEGIES[name]) if f.init}
