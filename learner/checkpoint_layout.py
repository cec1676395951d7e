"""The layout of a learner's checkpoint, and whether a run with another layout can resume it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rlsys.config.run import LearnerConfig, ModelConfig
from rlsys.errors import CheckpointError

LAYOUT_FILE = "layout.json"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The partition and contents of a checkpoint. trained: description of the parameters in the optimiser."""

    num_ranks: int
    zero_stage: int
    dtype: str
    trained: str


def layout_of(model: ModelConfig, learner: LearnerConfig, num_ranks: int) -> Layout:
    """Return the layout of the checkpoints that a learner saves."""
    lora = learner.lora
    if lora.rank:
        trained = f"LoRA of rank {lora.rank} on {', '.join(sorted(lora.targets))}"
    else:
        trained = f"all but {', '.join(sorted(learner.frozen_parts)) or 'nothing'}"
    return Layout(num_ranks=num_ranks, zero_stage=learner.zero_stage, dtype=model.dtype, trained=trained)


def read_layout(folder: Path) -> Layout:
    """Read the layout that `learner.checkpoints.save` wrote. Raises CheckpointError if there is none."""
    try:
        return Layout(**json.loads((folder / LAYOUT_FILE).read_text()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no learner checkpoint in it; it should have {LAYOUT_FILE}.") from error


def must_reshard(saved: Layout, wanted: Layout, folder: Path) -> bool:
    """Return whether a checkpoint must be resharded. Raises CheckpointError if that is not possible."""
    for field, ours in (("dtype", "model.dtype"), ("trained", "learner.lora and learner.frozen_parts")):
        if getattr(saved, field) != getattr(wanted, field):
            raise CheckpointError(
                f"{folder}: saved with {getattr(saved, field)!r}, the config says {getattr(wanted, field)!r}; its "
                f"optimiser state fits nothing else: set {ours} as before, or start from the checkpoint's model folder."
            )
    if (saved.zero_stage == 0) != (wanted.zero_stage == 0):
        raise CheckpointError(
            f"{folder}: saved with learner.zero_stage={saved.zero_stage}, the config says {wanted.zero_stage}; "
            "DeepSpeed cannot reshard to or from stage 0: use the stage that it was saved with."
        )
    # without ZeRO every rank has the whole state
    return bool(saved.zero_stage) and (saved.num_ranks, saved.zero_stage) != (wanted.num_ranks, wanted.zero_stage)
