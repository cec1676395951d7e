"""Lets a torchvision built for CUDA import beside a CPU build of torch.

torchvision's C++ library does not load there, so the two operators that its
Python code registers fake kernels for are unknown and `import torchvision` dies
with "operator torchvision::nms does not exist". Declaring their schemas first is
enough for the pure-Python parts (the video processor of Qwen2.5-VL).

vLLM inspects models in a subprocess, so this must act in every interpreter of
the environment: `setup.py` copies this file into site-packages together with a
`.pth` file that calls `install()`, and only where `import torchvision` fails.
A torchvision that matches its torch needs none of it. Beside a CUDA build of torch,
where declaring an operator that torchvision's own library declares too would abort
the process, the hook declares nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_KEPT: list[object] = []  # a torch.library.Library withdraws its operators when it is collected


class _DeclareBeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in _SCHEMAS:
                library.define(schema)
            _KEPT.append(library)
        return importlib.machinery.PathFinder.find_spec(fullname, path, target)


def install() -> None:
    """Declare the operators when, and only when, torchvision is first imported. Calling it again does nothing."""
    # a virtual environment runs its .pth files twice, and declaring an operator twice is an error
    if not any(isinstance(finder, _DeclareBeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeclareBeforeTorchvision())
