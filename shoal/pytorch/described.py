"""What a Hugging Face model is, besides its parameters: kept beside a run's checkpoints, so that
`shoal run export --serve` can make a model of them that anyone loads.

HOME/runs/NAME/checkpoint/model/ gets config.json and the tokenizer's files; prefix.json says what
stands before the model's own names if it was wrapped ("inner." of inner.lm_head.weight). No
transformers and no torch here: a module whose `config` has `save_pretrained` is such a model.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path("checkpoint") / "model"
PREFIX = "prefix.json"


def describe(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write it into a run's folder. Does nothing for other models; a full disk ends no training."""
    found = _outermost(model)
    if found is None:
        return
    prefix, inner = found
    folder = directory / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in (inner.config, getattr(inner, "generation_config", None), tokenizer):
            if part is not None and hasattr(part, "save_pretrained"):
                part.save_pretrained(folder)
        (folder / PREFIX).write_text(json.dumps(prefix))
    except OSError as error:
        print(f"shoal: {folder}: {error}", file=sys.stderr, flush=True)


def _outermost(model: Any) -> tuple[str, Any] | None:
    """Return the model of Hugging Face's, and what stands before its names in the run's layout."""
    for name, module in model.named_modules():
        if hasattr(getattr(module, "config", None), "save_pretrained"):
            return f"{name}.".removeprefix("module.").removeprefix("."), module
    return None
