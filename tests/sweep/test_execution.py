"""The ways to execute a step: what a request with ``auto`` plans, and what else it allows."""

from dataclasses import replace

import pytest

from scalelab.sweep.execution import (
    AUTO,
    ExecutionSpec,
    candidates,
    is_direct_possible,
    planned_execution,
    representative_specs,
)

ALL_AUTO = {"step": AUTO, "kernels": AUTO, "attention": AUTO}
REPEATABLE = {"flash", "triton", "sdpa", "explicit"}


@pytest.fixture
def spec(plan_of):
    return plan_of(kind="grid", n_params="50K", n_tokens="1M").rows[0].spec


def way(execution):
    return execution.step, execution.kernels, execution.attention


def changed(spec, n_experts=0, **fields):
    experts = {"n_experts": n_experts, "n_active_experts": 1 if n_experts else 0}
    return replace(spec, shape=replace(spec.shape, **experts), **fields)


@pytest.mark.parametrize(
    ("device", "fields", "planned"),
    [
        ("cuda", {"precision": "bf16"}, ("graph", "triton", "flash")),
        ("cuda", {"precision": "fp32"}, ("graph", "triton", "sdpa")),
        ("cuda", {"precision": "bf16", "n_experts": 4}, ("eager", "triton", "flash")),
        ("cpu", {}, ("direct", "reference", "explicit")),
        ("cpu", {"precision": "bf16"}, ("direct", "reference", "explicit")),
        ("cpu", {"z_loss": 1e-4}, ("direct", "reference", "explicit")),
        ("cpu", {"n_experts": 4}, ("eager", "reference", "sdpa")),
        ("cpu", {"logit_softcap": 30.0}, ("direct", "reference", "explicit")),
        ("cpu", {"is_document_masked": True}, ("direct", "reference", "explicit")),
        (
            "cuda",
            {"precision": "bf16", "is_document_masked": True},
            ("graph", "triton", "triton"),
        ),
        (
            "cuda",
            {"precision": "bf16", "logit_softcap": 30.0},
            ("compiled", "reference", "flash"),
        ),
    ],
)
def test_auto_plans_the_fastest_way_of_each_device_and_model(spec, device, fields, planned):
    request = ExecutionSpec(device=device, **ALL_AUTO)
    assert way(planned_execution(request, changed(spec, **fields))) == planned


@pytest.mark.parametrize("named", [{}, {"attention": "explicit"}])
def test_an_eager_step_on_a_cpu_skips_masked_scores_unless_another_attention_is_named(spec, named):
    request = ExecutionSpec(**{**ALL_AUTO, "step": "eager", **named})
    attention = named.get("attention", "sdpa")
    assert way(planned_execution(request, spec)) == ("eager", "reference", attention)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"precision": "bf16"},
        {"n_experts": 4},
        {"is_document_masked": True, "precision": "bf16"},
        {"logit_softcap": 30.0},
    ],
)
def test_the_last_candidate_is_the_plain_reference_and_each_repeats_bitwise(spec, device, fields):
    request = ExecutionSpec(device=device, micro_batch_seqs=2, keeps_weights=True, **ALL_AUTO)
    found = candidates(request, changed(spec, **fields))
    assert way(found[-1]) == ("eager", "reference", "sdpa" if device == "cuda" else "explicit")
    assert len(set(found)) == len(found) > (1 if device == "cuda" else 0)
    for each in found:
        assert AUTO not in way(each)
        assert each.attention in REPEATABLE
        assert replace(each, **ALL_AUTO) == request


@pytest.mark.parametrize(
    ("named", "ways"),
    [
        (
            {"kernels": "reference"},
            [
                ("compiled", "reference", "flash"),
                ("graph", "reference", "flash"),
                ("eager", "reference", "sdpa"),
            ],
        ),
        ({"step": "eager"}, [("eager", "triton", "flash"), ("eager", "reference", "sdpa")]),
        (
            {"attention": "cudnn", "step": "graph"},
            [("graph", "triton", "cudnn"), ("graph", "reference", "cudnn")],
        ),
        (
            {"step": "eager", "kernels": "triton", "attention": "triton"},
            [("eager", "triton", "triton")],
        ),
    ],
)
def test_candidates_keep_the_fields_that_were_named(spec, named, ways):
    request = ExecutionSpec(device="cuda", **{**ALL_AUTO, **named})
    assert [way(each) for each in candidates(request, changed(spec, precision="bf16"))] == ways


def test_several_gpus_train_with_eager_steps_and_plain_torch(spec):
    request = ExecutionSpec(device="cuda", n_devices=4, **ALL_AUTO)
    reference = [("eager", "reference", "sdpa")]
    found = candidates(request, changed(spec, precision="fp32"))
    assert [way(each) for each in found] == reference
    # The memory of sdpa grows with the square of the sequence.
    found = candidates(request, changed(spec, precision="bf16"))
    assert [way(each) for each in found] == [("eager", "reference", "flash"), *reference]


def test_several_gpus_mask_documents_with_sdpa(spec):
    request = ExecutionSpec(device="cuda", n_devices=4, **ALL_AUTO)
    found = candidates(request, changed(spec, precision="bf16", is_document_masked=True))
    assert [way(each) for each in found] == [("eager", "reference", "sdpa")]


def test_an_impossible_request_stays_as_it_was_named(spec):
    request = ExecutionSpec(device="cpu", step="graph", kernels=AUTO, attention=AUTO)
    assert way(planned_execution(request, spec)) == ("graph", "reference", "sdpa")
    assert not is_direct_possible(spec, ExecutionSpec(step="direct", n_devices=2))


def test_a_gpu_is_qualified_at_the_smallest_median_and_largest_shape(plan_of):
    rows = plan_of(kind="grid", n_params="30K..3M:5", n_tokens="1M,2M", train={"seeds": (0, 1)})
    specs = [row.spec for row in rows.rows]
    sizes = sorted({spec.shape.d_model for spec in specs})
    assert len(sizes) == 5
    found = representative_specs(reversed(specs))
    assert found == representative_specs(specs)
    assert [spec.shape.d_model for spec in found] == [sizes[0], sizes[2], sizes[4]]
    assert len(representative_specs(specs[:1])) == 1
    assert representative_specs([]) == ()
