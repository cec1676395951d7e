"""A process of a run is up in two thirds of the time when it imports vLLM or DeepSpeed within this block."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("mlflow", "scipy", "sklearn")
"""DeepSpeed's autotuner and what transformers has beside its models import them wherever they are installed."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Within the block, packages of `UNUSED` that are not imported yet are as if they were not installed.

    What is imported is garbage-collected neither meanwhile (it would be walked through again and again) nor later.
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None there is an ImportError
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if is_collecting:
            gc.enable()
        for name in hidden:
            del sys.modules[name]
