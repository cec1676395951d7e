"""GRPO on a video-language model in one file: about two minutes on two CPU cores.

    python examples/grpo_minimal.py

Draws short clips of coloured shapes, gives a tiny Qwen2.5-VL a short supervised start, and improves it by
reinforcement learning: `train` below is the loop that `rlsys train` runs. Every part is the real one: vLLM engines in
Ray actors (`actors`), DeepSpeed ranks (`learner`), the rule scorers of the reward servers (`reward_servers`).
`rlsys train` adds configs, reward servers and judges, sampling while the learner updates, checkpoints, recovery from
lost processes, and MLflow.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np

from rlsys import env

env.be_quiet()  # Ray and vLLM read these settings when they are imported
os.environ.update(env.CPU_WORKERS)  # and the workers of Ray inherit them

import ray  # noqa: E402

from actors.pool import RolloutPool  # noqa: E402
from actors.requests import EngineSpec  # noqa: E402
from learner.group import LearnerGroup  # noqa: E402
from learner.spec import LearnerSpec  # noqa: E402
from reward_servers.scorers.scorers import score  # noqa: E402
from rlsys.algorithm.advantages import group_advantages  # noqa: E402
from rlsys.config.run import AlgorithmConfig, DataConfig, LearnerConfig, ModelConfig, RolloutConfig, TrainConfig  # noqa: E402
from rlsys.data.annotations.annotations import load_annotations  # noqa: E402
from rlsys.data.video.decode import decode  # noqa: E402
from rlsys.demo.synthetic import demonstration_text, draw_dataset  # noqa: E402
from rlsys.models.prompts import PromptBuilder  # noqa: E402
from rlsys.models.tiny import make_tiny  # noqa: E402
from rlsys.types import ClipRef, Prompt, PromptItem, Rollout, RolloutGroup, Sampling, TrainBatch  # noqa: E402

SEED = 0
NUM_CLIPS = 128
NUM_ACTORS = 2
NUM_RANKS = 2
PROMPTS_PER_STEP = 8
GROUP_SIZE = 8  # G, responses per prompt, which are compared with one another
MAX_TOKENS = 24
MAX_MODEL_LEN = 512
WARM_UP_STEPS = 120
MALFORMED_FRAC = 0.5  # share of demonstrations in a wrong format, so that GRPO has a format to teach
STEPS = 30
ROLLOUT = RolloutConfig(max_tokens=MAX_TOKENS, max_num_seqs=PROMPTS_PER_STEP * GROUP_SIZE)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt about a clip, whose frames are in Ray's object store, where every process reads them."""

    item: PromptItem
    prompt: Prompt
    clips: tuple[ClipRef, ...]


def train(questions: Sequence[Question], pool: RolloutPool, learner: LearnerGroup) -> None:
    """Sample, score, compare, update, publish: GRPO (arXiv:2402.03300), strictly on-policy."""
    endless = cycle(questions)
    for step in range(1, STEPS + 1):
        groups = asyncio.run(sample(pool, list(islice(endless, PROMPTS_PER_STEP)), step))
        rewards = [group_rewards(group) for group in groups]
        # reward minus the group's mean, divided by its standard deviation: the group replaces a value network
        advantages = [group_advantages(of_group, np.ones(GROUP_SIZE, bool)) for of_group in rewards]
        learner.update(batch("grpo", groups, advantages))
        publish(learner, pool, version=step)
        report(step, np.array(rewards))


async def sample(pool: RolloutPool, questions: Sequence[Question], step: int) -> list[RolloutGroup]:
    """Return GROUP_SIZE responses to each question. The pool sends each group to the least busy actor."""

    async def one(index: int, question: Question) -> RolloutGroup:
        # response i of a group is sampled with seed + i, so seeds of groups are GROUP_SIZE apart
        seed = SEED + GROUP_SIZE * (PROMPTS_PER_STEP * step + index)
        how = Sampling(num_samples=GROUP_SIZE, temperature=1.0, top_p=1.0, max_tokens=MAX_TOKENS, seed=seed)
        rollouts = await pool.generate(question.item, question.prompt, question.clips, how)
        return RolloutGroup(item=question.item, prompt=question.prompt, clips=question.clips, rollouts=rollouts)

    return await asyncio.gather(*(one(index, question) for index, question in enumerate(questions)))


def group_rewards(group: RolloutGroup) -> np.ndarray:
    """Return f32 [G]: 1 for the correct format, plus the IoU of the predicted period with the true one."""
    item = group.item
    scores = [score(item.task, rollout.text, item.truth).scores for rollout in group.rollouts]
    return np.array([by_name["format"] + by_name["iou"] for by_name in scores], np.float32)


def batch(
    objective: Literal["grpo", "nll"], groups: Sequence[RolloutGroup], advantages: Sequence[np.ndarray]
) -> TrainBatch:
    """Return the learner's input, in which the responses of a group share one copy of their prompt."""
    return TrainBatch(
        objective=objective,
        groups=tuple(groups),
        advantages=tuple(advantages),
        is_trained=tuple(np.ones(len(group.rollouts), bool) for group in groups),
    )


def publish(learner: LearnerGroup, pool: RolloutPool, version: int) -> None:
    """Send the learner's weights to all engines, and return once each has acknowledged that it samples with them."""
    transfer, weights = learner.publish(version)
    pool.load_weights(transfer, weights)


def report(step: int, rewards: np.ndarray) -> None:
    """Print the mean of `rewards`, f32 [prompts, G], with its standard error over prompts."""
    by_prompt = rewards.mean(axis=1)
    error = by_prompt.std(ddof=1) / np.sqrt(by_prompt.size)
    print(f"step {step:2d}   reward {by_prompt.mean():.3f} +- {error:.3f} of 2   {'#' * round(20 * by_prompt.mean())}")


def warm_up(questions: Sequence[Question], prompts: PromptBuilder, learner: LearnerGroup) -> None:
    """Imitate demonstrations: random weights never earn a reward, so GRPO would have nothing to learn from."""
    rng = np.random.default_rng(SEED)
    endless = cycle(questions)
    for step in range(1, WARM_UP_STEPS + 1):
        chosen = list(islice(endless, 2 * PROMPTS_PER_STEP))
        groups = [demonstrated(question, prompts, rng) for question in chosen]
        metrics = learner.update(batch("nll", groups, [np.ones(1, np.float32)] * len(groups)))
        if step % 20 == 0:
            print(f"warm-up {step:3d}   loss {metrics['loss/nll']:.3f}")


def demonstrated(question: Question, prompts: PromptBuilder, rng: np.random.Generator) -> RolloutGroup:
    """Return a group of one response: the true answer, in a wrong format for a share MALFORMED_FRAC of them."""
    response_ids = prompts.encode_response(demonstration_text(question.item, rng, MALFORMED_FRAC))
    response = Rollout(
        rollout_id=f"{question.item.prompt_id}/demonstration",
        prompt_id=question.item.prompt_id,
        sample_index=0,
        prompt_ids=question.prompt.prompt_ids,
        response_ids=response_ids,
        response_logprobs=np.zeros(response_ids.size, np.float32),  # no policy sampled it, and "nll" uses none
        text="",
        finish_reason="stop",
        token_versions=np.zeros(response_ids.size, np.int32),
        generate_s=0.0,
    )
    return RolloutGroup(item=question.item, prompt=question.prompt, clips=question.clips, rollouts=(response,))


def draw_questions(folder: Path, prompts: PromptBuilder) -> list[Question]:
    """Draw and encode videos, then load them like any data set: annotations, frames, prompts."""
    drawn = draw_dataset(folder, num_clips=NUM_CLIPS, seed=SEED, num_objects=1)
    frames = DataConfig(prompt_style="terse", min_frames=4, max_frames=12, min_pixels=28 * 28, max_pixels=56 * 56)
    questions = []
    for item in load_annotations(drawn.annotations, videos=drawn.videos, data=frames).items:
        clips = [decode(spec) for spec in item.media]
        prompt = prompts.build(item, [clip.info for clip in clips])
        stored = tuple(ClipRef(info=clip.info, frames=ray.put(clip.frames)) for clip in clips)
        questions.append(Question(item=item, prompt=prompt, clips=stored))
    return questions


def learner_spec(model: Path, train: TrainConfig) -> LearnerSpec:
    """Describe a model and its optimiser, which ZeRO stage 2 partitions over the ranks."""
    return LearnerSpec(
        model=model_config(model),
        rollout=ROLLOUT,
        train=train,
        algorithm=AlgorithmConfig(),
        learner=LearnerConfig(num_ranks=NUM_RANKS),
        seed=SEED,
    )


def model_config(folder: Path) -> ModelConfig:
    return ModelConfig(path=folder, dtype="float32", max_model_len=MAX_MODEL_LEN)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Run a Ray cluster on this machine, on loopback, until the program ends."""
    ray.init(
        address="local",
        num_cpus=NUM_ACTORS + NUM_RANKS,  # logical: on two cores the processes take turns
        object_store_memory=200 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    try:
        yield
    finally:
        ray.shutdown()


def main() -> None:
    """Run everything in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="grpo-") as folder, ray_cluster():
        untrained, warmed_up = Path(folder, "untrained"), Path(folder, "warmed_up")
        make_tiny(untrained, seed=SEED)
        prompts = PromptBuilder(untrained, max_model_len=MAX_MODEL_LEN, max_tokens=MAX_TOKENS, dtype="float32")
        print(f"starting {NUM_ACTORS} vLLM actors and {NUM_RANKS} DeepSpeed ranks")
        # banned: a sampled video placeholder would have no frames behind it
        engine = EngineSpec(model=model_config(untrained), rollout=ROLLOUT, banned_token_ids=prompts.banned_token_ids)
        pool = RolloutPool.launch(engine, NUM_ACTORS)
        learner = LearnerGroup.launch(num_ranks=NUM_RANKS, device="cpu", threads=1, timeout_s=600)
        questions = draw_questions(Path(folder, "clips"), prompts)

        learner.load(learner_spec(untrained, TrainConfig(learning_rate=2e-3, num_steps=WARM_UP_STEPS)))
        warm_up(questions, prompts, learner)
        learner.export(warmed_up)

        learner.load(learner_spec(warmed_up, TrainConfig(learning_rate=3e-4, num_steps=STEPS, schedule="constant")))
        publish(learner, pool, version=0)
        train(questions, pool, learner)

        pool.shutdown()
        learner.shutdown()


if __name__ == "__main__":
    main()
