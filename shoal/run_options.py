"""Keywords for `shoal.Trainer` from a run file, as `shoal train` hands it to a script."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYS = ("rounds", "strategy", "wire", "aggregator", "min_members", "patience_s")  # of [run]


def run_options(settings: Mapping[str, Any] | None = None, **defaults: Any) -> dict[str, Any]:
    """Return what a run file says of the run, for `shoal.Trainer(model, optimizer, **…)`.

        shoal.Trainer(model, optimizer, **shoal.run_options(run="mine", rounds=10))

    settings: the file's sections; without, those that `shoal train` gives this process, if it has
    started it. From [run]: `KEYS`, and the name as `run`, unless `--name` gave another; from
    [strategy]: everything. `defaults` are for what the file does not say.
    """
    path = os.environ.get("SHOAL_RUN_CONFIG", "")
    found: Mapping[str, Any] = settings or (json.loads(Path(path).read_text()) if path else {})
    run: Mapping[str, Any] = found.get("run", {})
    said = {key: run[key] for key in KEYS if key in run}
    name = os.environ.get("SHOAL_RUN_NAME") or run.get("name")
    if name:
        said["run"] = name
    return defaults | said | dict(found.get("strategy", {}))
