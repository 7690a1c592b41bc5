"""What keeps a worker process small beside the weights: for a process of its own.

torch's compiler and its distributed tensors come with transformers, and with them sympy: 80 MB and
a second in each worker, which only runs models as they are. `install`, before transformers is
imported, leaves them out: what marks functions for the compiler does nothing. `trim`, when all is
loaded, gives back what only loading needed.
"""

import ctypes
import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
import torch.compiler
import torch.distributed

_COMPILER = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable", "mark_static_address")
_MADV_DONTNEED = 4
_UNUSED = ("accelerate", "PIL", "jinja2")  # transformers does without them; the tokenizer does not


def install() -> None:
    """Do so for the rest of this process."""
    assert "transformers" not in sys.modules, "too late"
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # as the import system documents
    absent: Any = _Absent(_COMPILER)
    absent.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    sys.modules[_COMPILER] = absent
    cast("Any", torch)._dynamo = absent
    cast("Any", torch.compiler).disable = _as_it_is
    cast("Any", torch.distributed).is_available = lambda: False


class _Absent(ModuleType):
    """Stands for the compiler, until somebody asks for more than marks."""

    def __getattr__(self, name: str) -> Any:
        if name in _MARKS:
            return _as_it_is
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
            cast("Any", torch)._dynamo = importlib.import_module(_COMPILER)
        return getattr(sys.modules[_COMPILER], name)


def _as_it_is(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else _as_it_is


def trim() -> None:
    """Give back memory: what is free, and code that has run for the last time.

    Pages of programs and libraries come back from their files when they are needed: some 20 of 90
    MB do.
    """
    gc.collect()
    gc.freeze()  # what is there now is never garbage: later collections are short
    system: Any = ctypes.CDLL(None)
    system.malloc_trim(0)
    system.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, *_, file = line.split(maxsplit=5) if line.count("/") else ("", "", "")
        if access == "r-xp" and file.startswith("/"):  # nobody has written there, so none is lost
            start, end = (int(address, 16) for address in addresses.split("-"))
            system.madvise(start, end - start, _MADV_DONTNEED)
