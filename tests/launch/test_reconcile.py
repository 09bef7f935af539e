"""The difference between plan and state: what a launcher must never do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.launch.reconcile import MAX_LOST_ATTEMPTS, RunState, reconcile
from scalelab.records.states import FILE_STATES, FINAL, PRUNED

run_ids = st.lists(st.sampled_from([f"r{i}" for i in range(12)]), max_size=15)
states = st.dictionaries(
    st.sampled_from([f"r{i}" for i in range(14)]),
    st.builds(
        RunState,
        status=st.sampled_from([*FILE_STATES, "queued"]),
        is_alive=st.booleans(),
        n_lost=st.integers(0, 5),
        is_wanted=st.booleans(),
    ),
)


@settings(deadline=None, max_examples=200)
@given(plan=run_ids, known=states, retry=st.booleans())
def test_every_run_gets_exactly_one_action(
    plan: list[str], known: dict[str, RunState], retry: bool
) -> None:
    actions = reconcile(plan, known, retry_failed=retry)
    parts = [*actions.start, *actions.wait, *actions.finished, *actions.gave_up]
    assert sorted(parts) == sorted(set(plan))
    for run_id in actions.start:
        state = known.get(run_id, RunState(status="planned"))
        assert state.status not in FINAL, "finished runs are never redone"
        assert state.status != PRUNED, "pruned runs are left alone"
        assert not state.is_alive, "living runs are never doubled"
        assert state.is_wanted, "cancelled runs are left alone"
        assert retry or (state.status != "failed" and state.n_lost < MAX_LOST_ATTEMPTS)
    assert actions.start == tuple(r for r in dict.fromkeys(plan) if r in actions.start)
    for run_id, state in known.items():
        if run_id in plan and state.status in FINAL:
            assert run_id in actions.finished


@settings(deadline=None, max_examples=60)
@given(plan=run_ids, known=states)
def test_what_was_started_is_not_started_again(plan: list[str], known: dict[str, RunState]) -> None:
    started = reconcile(plan, known).start
    after = {**known, **{r: RunState(status="queued", is_alive=True) for r in started}}
    assert reconcile(plan, after).start == ()
