"""DeepSpeed's checkpoint files as data: a checkpoint from elsewhere must not run code on the ranks that resume it.

DeepSpeed unpickles its files with `weights_only=False` (seen in 0.19.8), which calls whatever a file names.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from rlsys.errors import CheckpointUnsafe

ALLOWED = [LossScaler, ZeroStageEnum, fragment_address]
"""What the files of every dtype, ZeRO stage and kind of training name beside tensors and containers."""


@contextmanager
def data_only() -> Iterator[None]:
    """Let every `torch.load` in this process build tensors, containers and `ALLOWED` alone, whatever its caller says.

    A file that names anything else raises pickle.UnpicklingError before any of it is called.
    """
    with (
        patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}),
        torch.serialization.safe_globals(ALLOWED),
    ):
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # torch takes one of them at a time
        yield


def require_data(folder: Path) -> None:
    """Look at every file of a checkpoint before a rank opens it, which takes its pickle's opcodes, not its tensors.

    Raises CheckpointUnsafe, which names the first file that is no file of `torch.save` or names code to call.
    """
    with torch.serialization.safe_globals(ALLOWED):
        for file in sorted(Path(folder).rglob("*.pt")):
            try:
                found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
                raise CheckpointUnsafe(
                    f"{file}: not a file that torch.save wrote: {str(error).splitlines()[0]}"
                ) from error
            if found:
                raise CheckpointUnsafe(
                    f"{file}: would call {', '.join(sorted(found))} when it is read; a checkpoint of rlsys holds data "
                    "alone. Do not resume from this folder; its model/ folder is safetensors and can be trained from."
                )
