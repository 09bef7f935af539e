"""Facts about a text, and plans made from them."""

import pytest

from scalelab.sweep.plan import Plan, make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping


@pytest.fixture
def facts():
    return DataFacts(
        fingerprint="f" * 16,
        eval_fingerprint="e" * 16,
        tokenizer="bytes",
        vocab_size=256,
        n_train_tokens=30_000_000,
        n_eval_tokens=262_144,
    )


@pytest.fixture
def plan_of(facts):
    def make(given=facts, **content) -> Plan:
        return make_plan(sweep_from_mapping(content, source="a test"), given, precision="fp32")

    return make
