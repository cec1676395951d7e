"""Estimate the memory of a GPU that a learner rank and an engine use in turn (`cluster.colocate`)."""

from __future__ import annotations

from rlsys.config.run import RunConfig
from rlsys.models.sizes import ModelSizes
from rlsys.planning.plan import BYTES, GIB, Assumptions, Line, Prompts, Section, mean_batch_tokens, shown
from rlsys.planning.plan_learner import rank_memory


def shared_section(
    config: RunConfig, sizes: ModelSizes, prompts: Prompts, responses: float, given: Assumptions
) -> Section:
    """Return the section on a shared GPU: the phases never overlap, so its peak is that of the larger one.

    What stays through both is what the reserves stand for: contexts, buffers of NCCL, graphs and workspaces.
    """
    learner, rollout = config.learner, config.rollout
    tokens = min(learner.micro_batch_tokens, max(mean_batch_tokens(config, prompts, responses), prompts.longest))
    group = prompts.mean + rollout.group_size * responses
    memory = rank_memory(config, sizes, tokens, prompts.mean_visual / group)
    engine_stays, rank_stays = given.engine_reserve_gib * GIB, given.rank_reserve_gib * GIB
    learning = memory.device + rank_stays + engine_stays
    sampling = given.memory_gib * rollout.gpu_memory_utilization * GIB + rank_stays
    weights = sizes.parameters * BYTES[config.model.dtype]
    handover = (weights if config.weights.transport == "ipc" else 0) + weights + rank_stays + engine_stays
    moved = memory.weights + memory.gradients + memory.optimiser + memory.reference
    kept = weights if learner.lora.rank else 0
    room = given.memory_gib * GIB
    lines = (
        Line("while learning", shown(learning), "a rank's total + rank_reserve_gib + what a sleeping engine keeps"),
        Line("while sampling", shown(sampling), "memory_gib x gpu_memory_utilization + rank_reserve_gib"),
        Line("while weights change hands", shown(handover), f"both reserves + weights, {config.weights.transport}"),
        Line("peak", shown(max(learning, sampling, handover)), f"of {shown(room)}: the phases never overlap"),
        Line("stays through both", shown(rank_stays + engine_stays), "rank_reserve_gib + engine_reserve_gib"),
        Line("in host memory", shown(max(moved + memory.host, kept)), "a rank's state while sampling"),
    )
    problems = []
    if learning > room:
        problems.append(
            f"a shared GPU needs about {shown(learning)} while learning, of {shown(room)}: raise learner.num_ranks or "
            "learner.zero_stage, lower learner.micro_batch_tokens, or use learner.gradient_checkpointing, "
            "learner.offload=[optimizer] or learner.lora.rank."
        )
    if sampling > room:
        fits = (given.memory_gib - given.rank_reserve_gib) / given.memory_gib
        problems.append(
            f"a shared GPU needs about {shown(sampling)} while sampling, of {shown(room)}: lower "
            f"rollout.gpu_memory_utilization={rollout.gpu_memory_utilization:g} to {int(fits * 100) / 100:g}."
        )
    if handover > room:
        remedy = (
            "use weights.transport=object_store, by which only the engine's are on the GPU."
            if config.weights.transport == "ipc"
            else "the engine's weights alone do not fit; use GPUs with more memory, or cluster.colocate=false and "
            "rollout.tensor_parallel_size."
        )
        problems.append(
            f"a shared GPU needs about {shown(handover)} while weights change hands, of {shown(room)}: {remedy}"
        )
    return Section(title=f"each of {learner.num_ranks} shared GPUs", lines=lines, problems=tuple(problems))
