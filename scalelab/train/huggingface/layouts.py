"""The class of transformers that computes the same function as a run, its config and its tensors.

=======================  ==================================================================
Run                      Class
=======================  ==================================================================
dense                    LlamaForCausalLM
dense, QK-norm           Qwen3ForCausalLM
dense, logit soft-cap    VaultGemmaForCausalLM (transformers 4.57 or newer)
experts                  MixtralForCausalLM
experts, QK-norm         Qwen3MoeForCausalLM with ``norm_topk_prob``
experts, shared expert   Qwen2MoeForCausalLM with ``norm_topk_prob``
the same with QK-norm    Qwen3NextForCausalLM with full attention in every layer
=======================  ==================================================================

Two of these classes multiply by a sigmoid where we do not: Qwen2-MoE and Qwen3-Next the output of
the shared expert, Qwen3-Next the output of attention. Their gates are zero here, so the sigmoid is
1/2 everywhere, and the matrix that follows is doubled, which is exact in binary.

The factors of ``mup`` and ``completep`` are multiplied into weights: that of the attention scores
into the queries (into their norm's gain, if there is one), that of the logits into the gain of the
final norm, and that of the branches into the matrices that write to the residual stream.

All these classes rotate the pairs ``(x_i, x_{i + D/2})`` as we do, so no rows are permuted. The
rows that pad the vocabulary are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scalelab_kernels.reference import ROPE_BASE
from torch import Tensor

from scalelab.errors import UsageError
from scalelab.sweep.run_spec import RunSpec
from scalelab.train.model import NORM_EPSILON
from scalelab.train.parametrization import shape_factors
from scalelab.train.weights import Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceClass:
    """A class of transformers.

    Attributes
    ----------
    name : str
        Such as ``LlamaForCausalLM``.
    model_type : str
        Name of its config.
    """

    name: str
    model_type: str


LLAMA = HuggingFaceClass(name="LlamaForCausalLM", model_type="llama")
QWEN3 = HuggingFaceClass(name="Qwen3ForCausalLM", model_type="qwen3")
VAULT_GEMMA = HuggingFaceClass(name="VaultGemmaForCausalLM", model_type="vaultgemma")
MIXTRAL = HuggingFaceClass(name="MixtralForCausalLM", model_type="mixtral")
QWEN3_MOE = HuggingFaceClass(name="Qwen3MoeForCausalLM", model_type="qwen3_moe")
QWEN2_MOE = HuggingFaceClass(name="Qwen2MoeForCausalLM", model_type="qwen2_moe")
QWEN3_NEXT = HuggingFaceClass(name="Qwen3NextForCausalLM", model_type="qwen3_next")


def class_of(spec: RunSpec) -> HuggingFaceClass:
    """Return the class that computes the same function as a run's model.

    Raises
    ------
    UsageError
        If transformers has none.
    """
    shape = spec.shape
    if spec.logit_softcap:
        reason = (
            "experts"
            if shape.n_experts
            else "QK-norm"
            if shape.has_qk_norm
            else "heads that do not divide d_model"
            if shape.d_model % shape.n_heads
            else None
        )
        if reason is not None:
            raise UsageError(
                f"a model with logit_softcap = {spec.logit_softcap:g} and {reason}",
                "a soft-cap in a dense model without QK-norm, which VaultGemma computes; no other "
                "released class of transformers has our blocks and a soft-cap",
                "Train without logit_softcap to export, or use `scalelab evaluate`, which needs no "
                "export.",
            )
        return VAULT_GEMMA
    if not shape.n_experts:
        return QWEN3 if shape.has_qk_norm else LLAMA
    if shape.d_shared_expert:
        return QWEN3_NEXT if shape.has_qk_norm else QWEN2_MOE
    return QWEN3_MOE if shape.has_qk_norm else MIXTRAL


def config_of(spec: RunSpec, dtype: str, end_token: int | None) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Parameters
    ----------
    spec : RunSpec
        The run.
    dtype : str
        Of the tensors, such as ``float32``.
    end_token : int or None
        Token that ends a document.

    Raises
    ------
    UsageError
        If transformers has no class for the model.
    """
    shape, target = spec.shape, class_of(spec)
    config: dict[str, Any] = {
        "architectures": [target.name],
        "model_type": target.model_type,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": spec.seq_len,
        "initializer_range": spec.init_std,
        "rms_norm_eps": NORM_EPSILON,
        # transformers 4 reads the first, 5 the second.
        "rope_theta": ROPE_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.is_tied,
        "bos_token_id": None,
        "eos_token_id": end_token,
        "pad_token_id": None,
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_cache": True,
    }
    if shape.n_experts:
        config |= {
            "num_experts_per_tok": shape.n_active_experts,
            "num_experts": shape.n_experts,
            "num_local_experts": shape.n_experts,
            "moe_intermediate_size": shape.d_ff,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "router_aux_loss_coef": spec.balance_weight,
            "output_router_logits": False,
        }
    if shape.d_shared_expert:
        config["shared_expert_intermediate_size"] = shape.d_shared_expert
    if target is QWEN2_MOE:
        config["qkv_bias"] = False
    if target is QWEN3_NEXT:
        config |= {"partial_rotary_factor": 1.0, "layer_types": ["full_attention"] * shape.n_layers}
        config["rope_parameters"]["partial_rotary_factor"] = 1.0
    if target is VAULT_GEMMA:
        config |= {
            "hidden_activation": "silu",
            "final_logit_softcapping": spec.logit_softcap,
            "attn_logit_softcapping": None,
            "query_pre_attn_scalar": shape.d_head,
            # The class asks for one and, by its layer types, uses none.
            "sliding_window": spec.seq_len,
            "layer_types": ["full_attention"] * shape.n_layers,
        }
    return config


def tensors_of(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors in fp32, named as the class of the run names them.

    Raises
    ------
    UsageError
        If transformers has no class for the model.
    """
    spec, shape = weights.spec, weights.spec.shape
    target, factors, views = class_of(spec), shape_factors(spec), weights.views()
    # The classes divide the scores by sqrt(d_head).
    query_factor = factors.attention * shape.d_head**0.5
    # Norms of the Gemma family and of Qwen3-Next multiply by 1 + weight.
    offset = 1.0 if target in (VAULT_GEMMA, QWEN3_NEXT) else 0.0
    # VaultGemma multiplies the embedding by sqrt(d_model).
    stream = shape.d_model**0.5 if target is VAULT_GEMMA else 1.0
    found = {"model.embed_tokens.weight": views["embedding"][: shape.vocab_size] / stream}
    head_factor = factors.logits
    if shape.is_tied:
        head_factor *= stream
    else:
        found["lm_head.weight"] = views["head"][: shape.vocab_size]
    found["model.norm.weight"] = views["final_norm"] * head_factor - offset
    ff_norm = "pre_feedforward" if target is VAULT_GEMMA else "post_attention"
    for layer in range(shape.n_layers):
        own, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        q, k, v = torch.split(views[own + "qkv"], [shape.d_attention, shape.d_kv, shape.d_kv])
        out = views[own + "out"] * factors.branch
        if shape.has_qk_norm:
            q_norm, k_norm = views[own + "q_norm"], views[own + "k_norm"]
            found[theirs + "self_attn.q_norm.weight"] = q_norm * query_factor - offset
            found[theirs + "self_attn.k_norm.weight"] = k_norm - offset
        else:
            q = q * query_factor
        if target is QWEN3_NEXT:
            heads = q.view(shape.n_heads, shape.d_head, -1)
            q = _with_zero_gates(heads).flatten(0, 1)
            out = out * 2
        found |= {
            f"{theirs}self_attn.{name}_proj.weight": matrix
            for name, matrix in (("q", q), ("k", k), ("v", v), ("o", out))
        }
        found[theirs + "input_layernorm.weight"] = views[own + "attention_norm"] - offset
        found[f"{theirs}{ff_norm}_layernorm.weight"] = views[own + "ff_norm"] - offset
        gate_up, down = views[own + "gate_up"], views[own + "down"] * factors.branch
        if not shape.n_experts:
            found |= _mlp(theirs + "mlp.", gate_up, down)
            continue
        found |= _experts(target, theirs, views[own + "router"], gate_up, down)
        if shape.d_shared_expert:
            shared = views[own + "shared_down"] * (2 * factors.branch)
            found |= _mlp(theirs + "mlp.shared_expert.", views[own + "shared_gate_up"], shared)
            found[theirs + "mlp.shared_expert_gate.weight"] = q.new_zeros(1, shape.d_model)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _mlp(
    prefix: str, gate_up: Tensor, down: Tensor, names: str = "gate up down"
) -> dict[str, Tensor]:
    gate, up = gate_up.chunk(2)
    return {
        f"{prefix}{name}.weight" if name.startswith("w") else f"{prefix}{name}_proj.weight": matrix
        for name, matrix in zip(names.split(), (gate, up, down), strict=True)
    }


def _experts(
    target: HuggingFaceClass, prefix: str, router: Tensor, gate_up: Tensor, down: Tensor
) -> dict[str, Tensor]:
    """Return router and experts, one tensor for each matrix of each expert.

    transformers 5 stacks the experts when it loads them; 4 has them apart.
    """
    is_mixtral = target is MIXTRAL
    place = prefix + ("block_sparse_moe." if is_mixtral else "mlp.")
    names = "w1 w3 w2" if is_mixtral else "gate up down"
    found = {place + "gate.weight": router}
    for index, (own_gate_up, own_down) in enumerate(zip(gate_up, down, strict=True)):
        found |= _mlp(f"{place}experts.{index}.", own_gate_up, own_down, names)
    return found


def _with_zero_gates(heads: Tensor) -> Tensor:
    """Return each head's rows followed by as many zero rows: (H, D, d) to (H, 2 D, d)."""
    return torch.cat((heads, torch.zeros_like(heads)), 1)
