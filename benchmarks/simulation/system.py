"""The parameters of a simulated run: times of phases, faults, numbers of workers, and rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlsys.config.run import RunConfig, parse


@dataclass(frozen=True, kw_only=True)
class Phases:
    """The mean seconds of one group in each phase.

    generate_s: in a slot of an actor.  score_s: at the judge, from request to verdict.
    update_s: forward and backward on one rank.  optimizer_s: additional time of a step, for all ranks together.
    sync_s: for an actor to load new weights.  decode_s: for its clip.
    *_spread: standard deviation of the logarithm; 0 makes all groups equal.
    straggler_frac: share of groups that take `straggler_times` as long to generate as they otherwise would.
    """

    generate_s: float
    score_s: float = 0.0
    update_s: float
    sync_s: float = 0.0
    decode_s: float = 0.0
    optimizer_s: float = 0.0
    generate_spread: float = 0.0
    score_spread: float = 0.0
    update_spread: float = 0.0
    straggler_frac: float = 0.0
    straggler_times: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The shares of groups, or updates, with each fault.

    unscored_frac: the judge fails, so the reward is missing.  flat_frac: equal rewards.  bad_clip_frac: no clip.
    lost_frac: the actor dies during generation. All its groups are started again elsewhere, and after restart_s it is
    back with the newest weights.
    hung_frac: the actor hangs during generation, and counts as dead after hung_s.
    learner_lost_frac: share of updates in which a rank dies. After learner_restart_s the learner is at its last
    checkpoint.
    """

    unscored_frac: float = 0.0
    flat_frac: float = 0.0
    bad_clip_frac: float = 0.0
    lost_frac: float = 0.0
    restart_s: float = 60.0
    hung_frac: float = 0.0
    hung_s: float = 600.0
    learner_lost_frac: float = 0.0
    learner_restart_s: float = 120.0


@dataclass(frozen=True, kw_only=True)
class System:
    """The numbers of workers, and the rules of the loop.

    slots: groups that an actor generates at once. Groups wait in one queue until an actor has room.
    judge_slots, decode_workers: groups judged, or clips decoded, at once; 0 means no limit.
    weight_update, decode_ahead: as in the config, sections `pipeline` and `data`.
    checkpoint_every: number of steps between the checkpoints from which a lost learner resumes.
    """

    num_actors: int
    slots: int = 1
    num_ranks: int = 1
    judge_slots: int = 0
    decode_workers: int = 0
    decode_ahead: int = 0
    prompts_per_step: int
    max_lag: int = 0
    max_extra_groups: int = 0
    weight_update: Literal["pause", "keep", "abort"] = "pause"
    checkpoint_every: int = 1

    def config(self, num_steps: int, seed: int) -> RunConfig:
        """Return the config that the loop runs with."""
        tree = {
            "seed": seed,
            "output_dir": "simulated",
            "model": {"path": "simulated"},
            "train": {"num_steps": num_steps, "prompts_per_step": self.prompts_per_step},
            "pipeline": {"max_lag": self.max_lag, "weight_update": self.weight_update},
            "data": {"decode_ahead": self.decode_ahead},
            "algorithm": {"max_extra_groups": self.max_extra_groups},
        }
        return parse(tree, source="simulation")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The times of one group, in seconds, and its faults."""

    prompt_index: int
    generate_s: float
    score_s: float
    update_s: float
    has_bad_clip: bool
    is_unscored: bool
    is_flat: bool


def draw_group(prompt_index: int, phases: Phases, faults: Faults, seed: int) -> Draw:
    """Draw the times and faults of a prompt index, a function of only seed and index."""
    rng = np.random.default_rng([seed, prompt_index])
    generate, score, update = (
        float(np.exp(spread * normal - spread**2 / 2))
        for spread, normal in zip(
            (phases.generate_spread, phases.score_spread, phases.update_spread), rng.standard_normal(3), strict=True
        )
    )
    straggles, bad, unscored, flat = (rng.random(4) < _shares(phases, faults)).tolist()
    return Draw(
        prompt_index=prompt_index,
        generate_s=phases.generate_s * generate * (phases.straggler_times if straggles else 1.0),
        score_s=phases.score_s * score,
        update_s=phases.update_s * update,
        has_bad_clip=bad,
        is_unscored=unscored,
        is_flat=flat,
    )


def _shares(phases: Phases, faults: Faults) -> np.ndarray:
    return np.array([phases.straggler_frac, faults.bad_clip_frac, faults.unscored_frac, faults.flat_frac])
