"""Safe loading of DeepSpeed's checkpoint files, so that a checkpoint from elsewhere cannot run code on the ranks.

DeepSpeed unpickles its files with `weights_only=False` (as of 0.19.8), which calls any function that a file names.
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
"""The classes and functions beside tensors and containers that DeepSpeed's files name in any configuration."""


@contextmanager
def data_only() -> Iterator[None]:
    """Restrict every `torch.load` in this process to tensors, containers and `ALLOWED`, overriding its caller.

    A file that names anything else raises pickle.UnpicklingError before anything in it is called.
    """
    with (
        patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}),
        torch.serialization.safe_globals(ALLOWED),
    ):
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # torch takes one of them at a time
        yield


def require_data(folder: Path) -> None:
    """Check every file of a checkpoint before a rank opens it, by the opcodes of its pickles, without its tensors.

    Raises CheckpointUnsafe for the first file that `torch.save` did not write or that names code to call.
    """
    with torch.serialization.safe_globals(ALLOWED):
        for file in sorted(Path(folder).rglob("*.pt")):
            try:
                found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
                raise CheckpointUnsafe(
                    f"{file}: not a file that torch.save wrote ({str(error).splitlines()[0]}); use another checkpoint"
                ) from error
            if found:
                raise CheckpointUnsafe(
                    f"{file}: would call {', '.join(sorted(found))} when it is read; a checkpoint of rlsys holds only "
                    "data. Do not resume from this folder; its model/ folder is safetensors and can be trained from."
                )
