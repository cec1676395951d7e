"""The real loop in virtual time: staleness, every prompt once, times worked out by hand, faults counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.parts import SimulatedParts
from benchmarks.simulation.simulation import START, balanced, divisions, makespan, report, run, simulate
from benchmarks.simulation.system import Faults, Phases, System, draw_group
from benchmarks.simulation.virtual_time import Events, Meter, Servers
from rlsys.algorithm.batch import ScoringFailed
from rlsys.runs.records import ledger

PHASES = Phases(decode_s=1, generate_s=10, score_s=4, update_s=1, optimizer_s=0.5, sync_s=2)
SYSTEM = System(num_actors=4, slots=2, num_ranks=4, prompts_per_step=16)
LARGE = System(num_actors=64, num_ranks=8, prompts_per_step=128, judge_slots=256, decode_workers=32)
UNEVEN = Phases(
    decode_s=0.5,
    generate_s=20,
    generate_spread=0.5,
    straggler_frac=0.02,
    score_s=1,
    score_spread=0.5,
    update_s=1.5,
    update_spread=0.3,
    optimizer_s=0.5,
    sync_s=1,
)


systems = st.builds(
    System,
    num_actors=st.integers(1, 5),
    slots=st.integers(1, 3),
    num_ranks=st.integers(1, 4),
    judge_slots=st.integers(0, 4),
    decode_workers=st.integers(0, 3),
    prompts_per_step=st.integers(4, 8),
    max_lag=st.integers(0, 3),
    decode_ahead=st.integers(0, 9),
    max_extra_groups=st.integers(0, 3),
    weight_update=st.sampled_from(["pause", "keep", "abort"]),
    checkpoint_every=st.integers(1, 3),
)
phases = st.builds(
    Phases,
    decode_s=st.floats(0, 3),
    generate_s=st.floats(0.1, 10),
    score_s=st.floats(0, 30),
    update_s=st.floats(0, 3),
    sync_s=st.floats(0, 3),
    generate_spread=st.floats(0, 1),
    score_spread=st.floats(0, 1),
    update_spread=st.floats(0, 1),
    straggler_frac=st.floats(0, 0.3),
)
faults = st.builds(
    Faults,
    unscored_frac=st.floats(0, 0.05),
    flat_frac=st.floats(0, 0.3),
    bad_clip_frac=st.floats(0, 0.3),
    lost_frac=st.floats(0, 0.2),
    restart_s=st.floats(0, 60),
    hung_frac=st.floats(0, 0.2),
    hung_s=st.floats(0, 60),
    learner_lost_frac=st.floats(0, 0.4),
    learner_restart_s=st.floats(0, 60),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(system=systems, phases=phases, faults=faults, seed=st.integers(0, 1000))
def test_whatever_happens_no_group_is_too_old_and_every_draw_is_used_once(
    system: System, phases: Phases, faults: Faults, seed: int
) -> None:
    parts, *_ = run(system, phases, faults, num_steps=5, seed=seed)
    lags = [lag for moment in parts.moments for lag in moment.lags]
    assert min(lags) >= 0 and max(lags) <= system.max_lag
    assert ledger.problems(parts.entries, sum(len(one.prompt_indices) for one in parts.entries)) == []
    trained = [prompt_index for one in parts.entries for prompt_index in one.trained]
    assert trained == sorted(trained) and len(trained) == 5 * system.prompts_per_step
    for one in parts.entries:
        oldest, newest = one.versions
        assert one.step - 1 - system.max_lag <= oldest <= newest <= one.step - 1
        assert {parts.plan(prompt_index).has_bad_clip for prompt_index in one.skipped} <= {True}
        assert not any(parts.plan(prompt_index).has_bad_clip for prompt_index in (*one.trained, *one.replaced))


def test_synchronous_steps_take_the_sum_of_their_phases() -> None:
    # 16 groups in 8 slots: decode 1, two rounds of 10, the last group judged in 4, 4 groups a rank, 0.5, 2
    found = simulate(SYSTEM, PHASES, num_steps=6)
    assert found.step_s == pytest.approx(1 + 20 + 4 + 4 + 0.5 + 2)
    assert (found.generate_s, found.score_s, found.learn_s) == (20, 4, 4.5)
    assert found.floor_s == 20
    assert found.actors_busy == pytest.approx(20 / 31.5)
    assert found.learner_busy == pytest.approx(4.5 / 31.5)
    assert (found.max_lag, found.groups_trained) == (0, 96)


def test_with_lag_one_a_step_takes_the_longest_phase_and_the_sync() -> None:
    decoded = replace(PHASES, decode_s=0)
    found = simulate(replace(SYSTEM, max_lag=1), decoded, num_steps=12)
    assert found.step_s == pytest.approx(20 + 2)
    assert found.step_s <= 1.15 * found.floor_s
    slow_learner = simulate(replace(SYSTEM, max_lag=1), replace(decoded, update_s=8, score_s=0), num_steps=12)
    assert slow_learner.floor_s == 32.5
    assert slow_learner.step_s == pytest.approx(32.5 + 2)


def test_no_lag_hides_more_than_its_share_of_the_way_from_a_prompt_to_its_update() -> None:
    """Groups of version v train by v + k + 1, so k + 1 steps must hold generating, judging, learning and loading."""
    slow_judge = Phases(generate_s=20, score_s=20, update_s=5, sync_s=1)
    system = System(num_actors=4, slots=4, num_ranks=4, prompts_per_step=16)
    steps = [simulate(replace(system, max_lag=lag), slow_judge, num_steps=24).step_s for lag in range(3)]
    assert steps[0] == pytest.approx(61)
    assert steps[1] >= 30.5 and steps[1] == pytest.approx(30.5, rel=0.02)
    # a third of 61 is 20.33; actors that load between any two steps need 20 + 1
    assert steps[2] == pytest.approx(21)


@pytest.mark.parametrize("max_lag", [0, 1, 2])
def test_more_actors_never_slow_it_down(max_lag: int) -> None:
    system = replace(SYSTEM, max_lag=max_lag, prompts_per_step=12, decode_ahead=12)
    steps = [simulate(replace(system, num_actors=count), PHASES, num_steps=8).step_s for count in (1, 2, 3, 4, 6, 12)]
    assert steps == sorted(steps, reverse=True)


def test_a_judge_with_few_slots_becomes_the_floor() -> None:
    found = simulate(replace(SYSTEM, max_lag=1, judge_slots=1), PHASES, num_steps=10)
    assert found.floor_s == found.score_s == found.capacity_s == 64
    assert found.judge_busy > 0.9


def test_equal_seeds_give_equal_reports() -> None:
    faults = Faults(unscored_frac=0.02, lost_frac=0.01, bad_clip_frac=0.01, flat_frac=0.1)
    one, other, third = (simulate(LARGE, UNEVEN, faults, num_steps=3, seed=seed) for seed in (1, 1, 2))
    assert repr(one) == repr(other) != repr(third)


@pytest.mark.parametrize("judge_s", [0.1, 3.0, 30.0])
def test_64_actors_and_8_ranks_under_faults_stay_within_the_bound(judge_s: float) -> None:
    faults = Faults(unscored_frac=0.02, lost_frac=0.005, bad_clip_frac=0.01, flat_frac=0.1, restart_s=60)
    system = replace(LARGE, max_lag=1, max_extra_groups=16)
    parts, *_ = run(system, replace(UNEVEN, score_s=judge_s), faults, num_steps=6)
    found = report(parts, system, UNEVEN)
    assert found.max_lag == 1
    assert found.groups_trained == 6 * 128
    assert found.actors_lost > 0 and found.wasted_s > 0
    assert 0 < found.learner_busy < 1 and 0 < found.actors_busy < 1
    plans = [
        parts.plan(prompt_index)
        for prompt_index in range(found.groups_trained + found.groups_replaced + found.bad_clips)
    ]
    assert found.bad_clips == sum(plan.has_bad_clip for plan in plans)
    assert found.groups_unscored == sum(plan.is_unscored and not plan.has_bad_clip for plan in plans)


def test_a_judge_that_is_down_stops_the_run_as_the_real_one_would() -> None:
    with pytest.raises(ScoringFailed, match="infra: simulated"):
        simulate(SYSTEM, PHASES, Faults(unscored_frac=1.0), num_steps=2)


def test_keeping_what_runs_wastes_nothing_and_starting_it_again_does() -> None:
    system = replace(SYSTEM, max_lag=1, num_actors=3)
    kept = simulate(replace(system, weight_update="keep"), PHASES, num_steps=10)
    aborted = simulate(replace(system, weight_update="abort"), PHASES, num_steps=10)
    assert kept.wasted_s == 0 < aborted.wasted_s
    assert kept.step_s < aborted.step_s


def test_the_balanced_division_gives_devices_to_the_slower_phase() -> None:
    system = System(num_actors=1, num_ranks=1, slots=2, prompts_per_step=24, max_lag=1)
    # 6 actors: 24 x 10 s / 12 slots = 20 s.  2 ranks: 24 x 10/6 s / 2 = 20 s.
    found = balanced(list(divisions(system, Phases(generate_s=10, update_s=10 / 6), num_devices=8, num_steps=5)))
    assert (found.num_actors, found.num_ranks) == (6, 2)
    slow_learner = balanced(list(divisions(system, Phases(generate_s=1, update_s=10), num_devices=8, num_steps=5)))
    assert slow_learner.num_ranks == 6


def test_engines_over_several_devices_leave_the_remainder_unused() -> None:
    system = System(num_actors=1, prompts_per_step=6)
    found = list(divisions(system, Phases(generate_s=1, update_s=1), num_devices=6, devices_per_actor=2, num_steps=3))
    assert [(one.num_actors, one.num_ranks) for one in found] == [(2, 1), (2, 2), (1, 3)]


def test_groups_differ_by_draw_and_seed_alone_and_keep_their_mean() -> None:
    uneven = Phases(generate_s=10, update_s=1, generate_spread=0.5, straggler_frac=0.0)
    times = [draw_group(prompt_index, uneven, Faults(), seed=3).generate_s for prompt_index in range(2000)]
    assert sum(times) / len(times) == pytest.approx(10, rel=0.05)
    assert draw_group(7, uneven, Faults(), seed=3) == draw_group(7, uneven, Faults(), seed=3)


def test_makespan_by_hand() -> None:
    assert makespan([3, 2, 2, 1], 2) == 4  # 3 | 2 2, then 1 behind the 3
    assert makespan([3, 2], 0) == 3
    assert makespan([], 2) == 0


def test_servers_serve_in_order_and_their_time_is_measured() -> None:
    events = Events()
    servers, ends = Servers(events, 2), []
    for seconds in (3.0, 1.0, 1.0):
        servers.submit(seconds, lambda: ends.append(events.now))
    events.advance(10)
    assert ends == [1.0, 2.0, 3.0]
    assert servers.busy.total_s == 5.0


def test_waiting_for_what_nothing_brings_about_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="at 2 s a result is awaited"):
        events = Events()
        events.after(2, lambda: None)
        events.run_until(lambda: False)


def test_a_meter_adds_up_what_was_busy() -> None:
    events = Events()
    meter = Meter(events)
    meter.change(2)
    events.advance(3)
    meter.change(-1)
    events.advance(1)
    assert meter.total_s == 7.0


def test_clips_that_are_decoded_ahead_cost_no_time() -> None:
    when_asked, ahead = (simulate(replace(SYSTEM, decode_ahead=count), PHASES, num_steps=5) for count in (0, 16))
    assert (when_asked.step_s, ahead.step_s) == (pytest.approx(31.5), pytest.approx(30.5))
    # where groups wait for room, their clips are there by the time that they have it
    lagged = simulate(replace(SYSTEM, max_lag=1), PHASES, num_steps=10)
    assert lagged.step_s == pytest.approx(20 + 2)


def test_a_learner_that_is_lost_costs_its_restart_and_what_was_done_since_the_checkpoint() -> None:
    system = replace(SYSTEM, checkpoint_every=2)
    lost = Faults(learner_lost_frac=0.2, learner_restart_s=100)
    parts, *_ = run(system, PHASES, lost, num_steps=8, seed=4)
    assert parts.num_learners_lost > 0
    assert len(parts.moments) == 8 and ledger.problems(parts.entries, 8 * 16) == []
    undisturbed = 8 * 31.5 + 2
    per_loss = (parts.events.now - undisturbed) / parts.num_learners_lost
    # the restart, a publication, and at most one step and an update that are done again
    assert 100 + 2 <= per_loss <= 100 + 2 + 31.5 + 31.5


def test_a_hung_actor_is_lost_at_its_deadline_and_no_sooner() -> None:
    system = System(num_actors=2, prompts_per_step=2)
    phases = Phases(generate_s=10, update_s=1)
    hung = Faults(hung_frac=0.2, hung_s=300, restart_s=5)
    parts, *_ = run(system, phases, hung, num_steps=10, seed=3)
    assert parts.actors.num_lost > 0
    assert parts.moments[-1].at_s >= 10 * 12 + 300 * (parts.actors.num_lost - 1)
    assert {lag for moment in parts.moments for lag in moment.lags} == {0}


@pytest.mark.parametrize("weight_update", ["pause", "keep", "abort"])
def test_a_group_that_is_cancelled_frees_its_slot_and_one_started_again_arrives(
    weight_update: Literal["pause", "keep", "abort"],
) -> None:
    system = replace(SYSTEM, num_actors=1, slots=1, weight_update=weight_update)
    parts = SimulatedParts(system, PHASES, Faults(), 0, START)
    parts.publish(0)
    first, second = parts.start(0), parts.start(1)
    parts.events.advance(3)
    assert first.cancel() and first.cancelled()
    again = parts.start(0)
    assert second.result().group.item.prompt_id == "simulated:1"
    assert parts.events.now == pytest.approx(2 + 3 + 10 + 4)
    assert again.result().group.item.prompt_id == "simulated:0"
    assert parts.actors.busy.total_s == pytest.approx(2 + 10 + 10)
