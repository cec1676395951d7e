"""The learner's checkpoints in DeepSpeed's format, resumed bit for bit, or resharded for another number of ranks.

Resharding uses DeepSpeed's universal checkpoint (arXiv:2406.18820), which has one file per parameter and optimiser
state. It is created when a checkpoint is resumed on another number of ranks or at another ZeRO stage, so that saving
stays fast.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal

from learner.agreement import united
from learner.checkpoint_files import data_only
from learner.checkpoint_layout import LAYOUT_FILE, layout_of, must_reshard, read_layout
from learner.spec import LearnerSpec
from rlsys.errors import CheckpointNotConverted, NotWritten

TAG = "learner"
RESHARDED = ".resharded"


def save(engine: deepspeed.DeepSpeedEngine, spec: LearnerSpec, folder: Path) -> None:
    """Save the trained weights, optimiser and schedule; every rank writes its part. Frozen weights are not saved.

    Raises NotWritten, on all ranks, if a disk cannot be written to; `folder` must then be discarded.
    """
    problems: list[str] = []
    with _failures_noted(engine, problems):
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    if dist.get_rank() == 0 and not problems:
        layout = layout_of(spec.model, spec.learner, dist.get_world_size())
        try:
            (folder / LAYOUT_FILE).write_text(json.dumps(asdict(layout), indent=2) + "\n")
        except OSError as error:
            problems.append(f"{folder / LAYOUT_FILE}: {error}")
    raise_not_written(problems, engine.device)


def raise_not_written(problems: Sequence[str], device: torch.device) -> None:
    """Raise NotWritten on all ranks if any rank has problems with its disk."""
    if found := united(tuple(problems), device):
        cause = min(found, key=lambda problem: "Errno" not in problem)  # torch says what follows from it
        raise NotWritten(cause if len(found) == 1 else f"{cause} (and {len(found) - 1} more files)")


@contextmanager
def _failures_noted(engine: deepspeed.DeepSpeedEngine, problems: list[str]) -> Iterator[None]:
    """Collect the errors of writing files in the block instead of raising, because DeepSpeed synchronises the ranks."""

    def noted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return operation(*arguments, **options)
            except (OSError, RuntimeError) as error:  # torch's writer raises the latter
                path = options.get("path") or arguments[-1]
                problems.append(f"{path}: {type(error).__name__}: {error}".split("\n")[0])

        return call

    writer = engine.checkpoint_engine
    writing = ((writer, "save"), (writer, "makedirs"), (engine, "_copy_recovery_script"))  # seen in 0.19.8
    for owner, name in writing:
        setattr(owner, name, noted(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in writing:
            delattr(owner, name)  # the class's own shows again


def restore(engine: deepspeed.DeepSpeedEngine, spec: LearnerSpec, folder: Path, scratch: Path | None = None) -> None:
    """Restore what `save` wrote, bit for bit with the same number of ranks and ZeRO stage.

    scratch: folder for a copy that is made for another number of ranks or stage, and removed; None: `folder`.
    No code that a file names is called, see `learner.checkpoint_files`. Raises CheckpointError if there is no
    checkpoint, or it is of another model or cannot be resharded as requested, and CheckpointNotConverted, on all ranks,
    if the disk does not take that copy.
    """
    saved = read_layout(folder)
    with data_only():
        if must_reshard(saved, layout_of(spec.model, spec.learner, dist.get_world_size()), folder):
            _restore_resharded(engine, spec, folder, scratch or folder)
        else:
            # frozen weights are not in the checkpoint
            engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
    engine.lr_scheduler.apply_settings(spec.train)  # last, because the optimizer's state is loaded after the schedule's
    # below stage 3, and in 16 bit without ZeRO, DeepSpeed restores the clipping of the checkpoint (as of 0.19.8)
    engine.optimizer.clip_grad = spec.train.max_grad_norm


def _restore_resharded(engine: deepspeed.DeepSpeedEngine, spec: LearnerSpec, folder: Path, scratch: Path) -> None:
    problems: list[str] = []
    if dist.get_rank() == 0:
        try:
            _convert(folder / TAG, scratch / RESHARDED, spec.learner.zero_stage)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            shutil.rmtree(scratch / RESHARDED, ignore_errors=True)
            problems.append(
                f"{folder}: its copy for {dist.get_world_size()} ranks at learner.zero_stage={spec.learner.zero_stage} "
                f"could not be written to {scratch} ({str(error).splitlines()[0]}); free space there, or resume with "
                "the ranks and the stage with which it was saved."
            )
    if found := united(tuple(problems), engine.device):
        raise CheckpointNotConverted(found[0])
    # DeepSpeed reads this from its config, before it is known which checkpoint will be resumed
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(scratch), tag=RESHARDED, load_module_strict=False)
    engine._config.load_universal_checkpoint = False
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(scratch / RESHARDED)
        (scratch / "latest_universal").unlink()


def _convert(source: Path, target: Path, zero_stage: int) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    ds_to_universal.main(
        Namespace(
            input_folder=str(source),
            output_folder=str(target),
            num_extract_workers=1,  # more workers would be processes, each of which imports torch again
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # only for pipeline parallelism, which is not used here
        )
    )
    _fit_to_stage(target, zero_stage)


def _fit_to_stage(folder: Path, zero_stage: int) -> None:
    """Move what DeepSpeed's universal format stores elsewhere at ZeRO-3 than at lower stages (as of 0.19.8)."""
    zero = folder / "zero"
    at_3, below = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt", folder / "mp_rank_00_model_states.pt"
    shared = _read(zero / "optimizer_state.pt")
    if zero_stage == 3 and not at_3.exists():
        shutil.copy(below, at_3)
        step = _read(next(zero.glob("*/step.pt")))
        shared["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": shared["param_groups"]}
    elif zero_stage < 3 and not below.exists():
        shutil.copy(at_3, below)
        shared["ds_version"] = deepspeed.__version__
        step = shared["optimizer_state_dict"]["state"][0]["step"]
        for parameter in (path for path in zero.iterdir() if path.is_dir()):
            torch.save(step, parameter / "step.pt")
            for state in ("fp32", "exp_avg", "exp_avg_sq"):
                torch.save({"param": _read(parameter / f"{state}.pt")}, parameter / f"{state}.pt")
    torch.save(shared, zero / "optimizer_state.pt")


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
