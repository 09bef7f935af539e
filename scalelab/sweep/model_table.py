"""Table ``[model]`` of a sweep specification: presets, heads, depths and explicit shapes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from pydantic import model_validator

from scalelab.errors import UsageError
from scalelab.sweep.expert_rule import MAX_EXPERTS, SIZES_BY, ExpertRule, expert_rules
from scalelab.sweep.option import MODEL, Table, option
from scalelab.sweep.presets import PRESETS
from scalelab.sweep.shape_list import EXAMPLE
from scalelab.sweep.shape_rule import ALIGNED_FROM_FLOPS, FINE, SHAPES, ShapeRule
from scalelab.sweep.shapes import SMALLEST_VOCABULARY, listed_shapes
from scalelab.sweep.values import Aspect, Integers, ShapeList
from scalelab.units import format_flops

EXPERT_AXES = ("n_experts", "expansion", "n_active_experts", "granularity")
NEED_EXPERTS = ("n_active_experts", "granularity", "n_shared_experts", "size_by")


class ModelTable(Table):
    """``[model]``: the shapes of the models."""

    panel: ClassVar[str] = MODEL

    shapes: Literal[SHAPES] | None = option(  # type: ignore[valid-type]
        None,
        "Table of shapes: fine has many sizes of small models; aligned has head sizes and hidden "
        "widths that are fast on GPUs. Default: aligned where the largest run has "
        f"{format_flops(ALIGNED_FROM_FLOPS)} FLOPs or more, else fine", example="aligned"
    )  # fmt: skip

    preset: Literal[tuple(PRESETS)] | None = option(  # type: ignore[valid-type]
        None, "Shapes of a known family; sets the defaults of the other model options",
        example="llama"
    )  # fmt: skip
    is_tied: bool | None = option(
        None, "Use the embedding matrix as output head. Default: the preset's, else no",
        flag="--tied", example="true"
    )  # fmt: skip
    has_qk_norm: bool | None = option(
        None, "Normalize queries and keys of each head. Default: the preset's, else yes",
        flag="--qk-norm", example="false"
    )  # fmt: skip
    d_head: int | None = option(
        None, "Size of a head at every width, even. Default: the preset's, else the table's, which "
        "grows with the width", example="64", ge=2, le=512
    )  # fmt: skip
    heads_per_kv_head: int | None = option(
        None, "Query heads that share a key and value head (grouped-query attention); models have "
        "only widths whose heads it divides. Default: the preset's, else 1", example="4", ge=1,
        le=64
    )  # fmt: skip
    n_kv_heads: int | None = option(
        None, "Key and value heads at every width, instead of --heads-per-kv-head; 1 is multi-"
        "query attention", example="1", ge=1, le=64
    )  # fmt: skip
    ff_multiple: float | None = option(
        None, "Hidden width of the SwiGLU layer divided by d_model, rounded up to a multiple of 8 "
        "or 64. Default: the preset's, else 8/3", example="4", gt=0, le=64
    )  # fmt: skip
    aspect: Aspect | None = option(
        None, "d_model divided by the layers: one number for all widths, or width:number,.. with a "
        "power law between the widths. Default: the preset's, else power, 16 (d_model / 32)^0.45",
        example="64"
    )  # fmt: skip
    shape_list: ShapeList | None = option(
        None, "Train exactly these shapes, instead of --n-params or --sizes: labels, or a CSV file "
        "with n_layers, d_model and optionally n_heads, d_head, d_ff, n_kv_heads. In files also a "
        "list of tables", example=EXAMPLE
    )  # fmt: skip
    n_experts: Integers = option(
        (), "Routed experts in each block; 1 is a dense model. Several values are an axis of a "
        "grid or ladder. Default: dense models", example="1,4,8"
    )  # fmt: skip
    expansion: Integers = option(
        (), "Instead of --n-experts: width of all routed experts of a block divided by that of the "
        "dense layer, so that --granularity does not change all parameters; 1 is a dense model. "
        "Several values are an axis", example="8"
    )  # fmt: skip
    n_active_experts: Integers = option(
        (), "Routed experts that each token passes through. Several values are an axis. Default: "
        "as many as the granularity, which is the width of the dense layer", example="2"
    )  # fmt: skip
    granularity: Integers = option(
        (), "Width of the dense layer divided by that of a routed expert: experts grow with the "
        "model. Several values are an axis. Default: 1", example="1,2,4"
    )  # fmt: skip
    n_shared_experts: int = option(
        0, "Experts that every token passes through, each as wide as a routed one", example="1",
        ge=0, le=64
    )  # fmt: skip
    size_by: Literal[SIZES_BY] | None = option(  # type: ignore[valid-type]
        None, "What the size N of a mixture of experts counts: active, the parameters that a token "
        "uses, or total. Default: active", example="total"
    )  # fmt: skip

    @model_validator(mode="after")
    def _shapes_are_possible(self) -> ModelTable:
        if self.d_head is not None and self.d_head % 2:
            raise UsageError(
                f"d_head = {self.d_head} (--d-head)",
                "an even number, because rotary positions rotate pairs",
                f"Use --d-head {self.d_head + 1}.",
            )
        if self.n_kv_heads is not None and self.heads_per_kv_head is not None:
            raise UsageError(
                f"n_kv_heads = {self.n_kv_heads} with heads_per_kv_head = {self.heads_per_kv_head}",
                "one of them",
                "Remove --n-kv-heads for the same ratio at every size, or --heads-per-kv-head.",
            )
        if self.aspect and self.shape_list:
            raise UsageError(
                "aspect (--aspect) with shape_list (--shape-list)",
                "one of them, because the list gives every depth",
                "Remove --aspect, or replace --shape-list by --n-params.",
            )
        self._check_experts()
        # Raises where a shape is wrong, which no vocabulary changes.
        for rule in self.rules(FINE):
            listed_shapes(SMALLEST_VOCABULARY, rule)
        return self

    def rules(self, default_table: str) -> tuple[ShapeRule, ...]:
        """Return the rule of the shapes with each combination of the axes of the experts."""
        rule = self.rule(default_table)
        return tuple(dataclasses.replace(rule, experts=experts) for experts in self.experts())

    def experts(self) -> tuple[ExpertRule | None, ...]:
        """Return each combination of the axes of the experts; None is a dense model."""
        return expert_rules(
            n_experts=self.n_experts,
            expansions=self.expansion,
            n_active_experts=self.n_active_experts,
            granularities=self.granularity or (1,),
            n_shared_experts=self.n_shared_experts,
        )

    def _check_experts(self) -> None:
        for name in EXPERT_AXES:
            wrong = [value for value in getattr(self, name) if not 1 <= value <= MAX_EXPERTS]
            if wrong:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{name} = {wrong[0]} ({flag})",
                    f"whole numbers from 1 to {MAX_EXPERTS:,}",
                    f"Write for example {flag} 8.",
                )
        if self.n_experts and self.expansion:
            raise UsageError(
                "n_experts (--n-experts) with expansion (--expansion)",
                "one of them: n_experts = expansion x granularity",
                "Remove --expansion, or --n-experts.",
            )
        idle = [name for name in NEED_EXPERTS if getattr(self, name)]
        if idle and self.experts() == (None,):
            names = [f"{name} (--{name.replace('_', '-')})" for name in idle]
            raise UsageError(
                f"{' and '.join(names)} without experts",
                "these with a mixture of experts, of 2 experts or more",
                "Add for example --n-experts 8, or remove them.",
            )

    def rule(self, default_table: str) -> ShapeRule:
        """Return the rule of the dense shapes; the default table applies where none is given."""
        keys = {item.name for item in dataclasses.fields(ShapeRule)} & set(ModelTable.model_fields)
        given = {key: value for key in keys if (value := getattr(self, key)) is not None}
        values = dict(PRESETS[self.preset].values) if self.preset else {}
        if "n_kv_heads" in given:
            values.pop("heads_per_kv_head", None)
        return ShapeRule(table=self.shapes or default_table, **{**values, **given})
