"""The figures of `benchmarks.true_width` beside those of `rlsys plan` for the same config, model and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.true_width_prompts import LEARNERS, LORA_RANK, Case, run_config
from learner.model.pixels import PIECE_BYTES
from rlsys.config.run import LearnerConfig, LoraConfig, RunConfig
from rlsys.models.sizes import ModelSizes, read_model_sizes
from rlsys.planning.plan import BYTES, STEP_TOKENS, Prompts, payload_bytes, step_bytes
from rlsys.planning.plan_learner import rank_memory

Step = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A figure. measured, planned: bytes; planned is 0 where the plan has no such figure."""

    phase: str
    case: str
    what: str
    measured: float
    planned: float
    seconds: float


def compared(
    found: Sequence[Step], folder_of: Callable[[str], Path], cases: Mapping[str, Case], narrow: Case
) -> Iterator[Compared]:
    """Yield the figures of the phases that were measured.

    folder_of: phase -> folder with its model.  narrow: the prompt of the baseline.
    """
    by_phase: dict[tuple[str, str], dict[str, Step]] = {}
    for step in found:
        by_phase.setdefault((step["phase"], step["case"]), {})[step["step"]] = step
    baseline = by_phase.get(("baseline", "1k"))
    base = _Engine(run_config(folder_of("baseline"), narrow), narrow, baseline) if baseline else None
    for (phase, name), steps in by_phase.items():
        folder, case = folder_of(phase), cases[name]
        if phase == "engine" and base:
            yield from _engine(name, _Engine(run_config(folder, case), case, steps), base)
        elif phase == "packed":
            yield from _packed(name, steps, run_config(folder, case))
        elif phase in ("adapters", "full"):
            yield from _ranks(phase, name, steps, run_config(folder, case, **LEARNERS[phase](case)))
        elif phase == "sync":
            yield from _sync(name, steps, run_config(folder, case))


class _Engine:
    """An engine's memory as measured and as planned, in bytes: after it was loaded, and at most, while it samples."""

    def __init__(self, config: RunConfig, case: Case, steps: Mapping[str, Step]) -> None:
        self.steps, sizes = steps, read_model_sizes(config.model.path)
        (load,), (generate,) = (steps[name]["memory"]["main"] for name in ("load", "generate"))
        clip = 3 * 2 * case.temporal_patches * case.side_px**2  # the caller's frames
        self.held, self.peak = load["after"] - load["before"], generate["peak"] - load["before"] - clip
        visual = case.temporal_patches * (case.side_px // 28) ** 2
        weights, tokens = _engine_weights(config, sizes), steps["generate"]["prompt_tokens"]
        inputs = max(STEP_TOKENS, tokens) * sizes.hidden * BYTES[config.model.dtype]
        self.planned_held = weights + inputs
        self.planned_peak = weights + step_bytes(config, sizes, _prompts(visual, tokens))


def _engine(name: str, engine: _Engine, base: _Engine) -> Iterator[Compared]:
    """Yield what the engine holds and its peak, beyond the baseline's in both columns."""
    held, planned = engine.held - base.held, engine.planned_held - base.planned_held
    yield _figure("engine", name, "loaded: weights, packed head, inputs", held, planned, engine.steps["load"])
    peak, planned_peak = engine.peak - base.peak, engine.planned_peak - base.planned_peak
    yield _figure("engine", name, "sampling: with the largest step", peak, planned_peak, engine.steps["generate"])


def _engine_weights(config: RunConfig, sizes: ModelSizes) -> int:
    return (sizes.parameters + 2 * sizes.vocabulary * sizes.hidden) * BYTES[config.model.dtype]


def _prompts(visual: int, tokens: int) -> Prompts:
    text = tokens - visual
    return Prompts(
        mean_text=text, mean_visual=visual, longest_text=text, longest_visual=visual, multiply_adds=0, source=""
    )


def _packed(name: str, steps: Mapping[str, Step], config: RunConfig) -> Iterator[Compared]:
    """Yield the pixels and the head's chunks; a forward pass without gradients is in no plan."""
    sizes, pack = read_model_sizes(config.model.path), steps["pack"]
    pixels = pack["patches"] * sizes.patch_dim * BYTES[config.model.dtype]
    if pixels > 4 * PIECE_BYTES:
        # bytes of one piece, and its numbers in float32
        yield _figure("packed", name, "packing: pixels, and one piece", _beyond(pack), pixels + 5 * PIECE_BYTES, pack)
    if "log-probs" in steps:
        yield _figure("packed", name, "log-probs without gradients", _beyond(steps["log-probs"]), 0, steps["log-probs"])
        # the head's weights are frozen in this phase
        adapted = config.model_copy(update={"learner": LearnerConfig(lora=LoraConfig(rank=LORA_RANK))})
        logits = rank_memory(adapted, sizes, steps["head"]["targets"], 0.0).logits
        yield _figure("packed", name, "head, forward and backward", _beyond(steps["head"]), logits, steps["head"])


def _ranks(phase: str, name: str, steps: Mapping[str, Step], config: RunConfig) -> Iterator[Compared]:
    """Yield the largest rank of an update beyond its memory before it loaded a model, and the bytes of the files."""
    sizes = read_model_sizes(config.model.path)
    update = steps.get("second update") or steps["update"]
    base = min(one["before"] for one in steps["load"]["memory"]["rank"])
    peak = max(one["peak"] for one in update["memory"]["rank"]) - base
    case = config.data.max_frames // 2 * (config.data.max_pixels // 28**2)
    tokens = update["tokens"] / config.learner.data_parallel
    memory = rank_memory(config, sizes, tokens, case / tokens)
    yield _figure(phase, name, "a rank's update", peak, memory.device, update)
    trained = memory.optimiser * config.learner.num_ranks
    yield _figure(phase, name, "checkpoint written", steps["save"]["bytes"], trained, steps["save"])
    weights = sizes.parameters * BYTES[config.model.dtype]
    yield _figure(phase, name, "model written", steps["export"]["bytes"], weights, steps["export"])
    yield _figure(phase, name, "a rank's export", _beyond(steps["export"], "rank"), 0, steps["export"])


def _sync(name: str, steps: Mapping[str, Step], config: RunConfig) -> Iterator[Compared]:
    payload = payload_bytes(config, read_model_sizes(config.model.path))
    for version in range(2):
        publish, receive = steps[f"publish {version}"], steps[f"receive {version}"]
        yield _figure("sync", name, f"version {version}: bytes sent", receive["stored"], payload, publish)
        yield _figure("sync", name, f"version {version}: rank 0 publishes", _beyond(publish, "rank"), 0, publish)
        yield _figure("sync", name, f"version {version}: engine loads", _beyond(receive, "engine"), 0, receive)


def _beyond(step: Step, role: str = "main") -> int:
    return max(one["beyond"] for one in step["memory"][role])


def _figure(phase: str, case: str, what: str, measured: float, planned: float, step: Step) -> Compared:
    seconds = step["end"] - step["start"]
    return Compared(phase=phase, case=case, what=what, measured=measured, planned=planned, seconds=seconds)
