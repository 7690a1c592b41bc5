"""Lets a process import transformers without the compilers that it never uses.

torch's compiler and its distributed tensors come with transformers, and with them sympy: 80 MB and
a second in each worker process, which only runs models as they are. What decorates functions for
the compiler becomes nothing here. For a process of its own, before transformers is imported.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.compiler
import torch.distributed

_COMPILER = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable", "mark_static_address")
_UNUSED = ("accelerate", "PIL", "jinja2")  # transformers does without them; the tokenizer does not


def install() -> None:
    """Do so for the rest of this process."""
    assert "transformers" not in sys.modules, "too late"
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # as the import system documents
    absent: Any = _Absent(_COMPILER)
    absent.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    sys.modules[_COMPILER] = absent
    vars(torch)["_dynamo"] = absent
    vars(torch.compiler)["disable"] = _as_it_is
    vars(torch.distributed)["is_available"] = lambda: False


class _Absent(ModuleType):
    """Stands for the compiler, until somebody asks for more than marks."""

    def __getattr__(self, name: str) -> Any:
        if name in _MARKS:
            return _as_it_is
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
            vars(torch)["_dynamo"] = importlib.import_module(_COMPILER)
        return getattr(sys.modules[_COMPILER], name)


def _as_it_is(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else _as_it_is
