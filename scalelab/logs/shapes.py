"""Count the parameters of a model from the settings that its trainer logged.

Models with gated feed-forward layers are counted by `scalelab.theory.accounting`, with the biases
and norms that they have in addition; GPT-2 and GPT-NeoX blocks by their own formula. Each rule
names the settings it reads, and the repository whose model it counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scalelab.errors import SpecError
from scalelab.logs.values import Settings
from scalelab.theory.accounting import count_params
from scalelab.theory.shape import ModelShape

Rule = Callable[[Settings], "ShapeCount | None"]

_GATED = {
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "olmo2", "phi3", "smollm3"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "granite", "stablelm", "internlm2"),
}
_QK_NORM_PER_HEAD = {"qwen3", "qwen3_moe"}
_NANOGPT_VOCAB = 50_304
_LLAMA_MULTIPLE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeCount:
    """Parameters of a logged model.

    Attributes
    ----------
    total : int
        All parameters (convention ``chinchilla``).
    kaplan : int
        Parameters without token embedding, position embedding and head (``kaplan``).
    active : int
        As total, counting only the experts that a token passes through.
    source : str
        The rule and the settings that it read.
    """

    total: int
    kaplan: int
    active: int
    source: str


def count_logged(settings: Settings) -> ShapeCount | None:
    """Return the parameters of the model that these settings describe, None if they do not."""
    for rule in _RULES:
        try:
            found = rule(settings)
        except (SpecError, OverflowError):
            continue
        if found is not None:
            return found
    return None


def _hugging_face(s: Settings) -> ShapeCount | None:
    """Count a model of transformers from its ``config.json``."""
    kind = str(s.get("model_type") or "").lower()
    if kind == "gpt2":
        d = s.count("n_embd", "hidden_size")
        layers = s.count("n_layer", "num_hidden_layers")
        if d is None or layers is None:
            return None
        return _plain_blocks(
            s, d, layers,
            d_ff=s.count("n_inner") or 4 * d,
            vocab=s.count("vocab_size") or 50_257,
            positions=s.count("n_positions", "max_position_embeddings") or 1_024,
            is_tied=s.flag("tie_word_embeddings", default=True), has_bias=True, norm_biases=True,
            rule="GPT-2 blocks from config.json: n_layer, n_embd, n_positions, vocab_size",
        )  # fmt: skip
    d, layers = s.count("hidden_size"), s.count("num_hidden_layers")
    heads, d_ff = s.count("num_attention_heads"), s.count("intermediate_size")
    vocab = s.count("vocab_size")
    if not (d and layers and heads and d_ff and vocab):
        return None
    if kind == "gpt_neox":
        return _plain_blocks(
            s, d, layers, d_ff=d_ff, vocab=vocab, positions=0,
            is_tied=s.flag("tie_word_embeddings"), has_bias=True, norm_biases=True,
            rule="GPT-NeoX blocks from config.json: num_hidden_layers, hidden_size, "
            "intermediate_size, vocab_size",
        )  # fmt: skip
    if kind not in _GATED:
        return None
    d_head = s.count("head_dim") or d // heads
    kv = s.count("num_key_value_heads") or heads
    experts = s.count("num_local_experts", "num_experts") or 0
    wide_bias = s.flag("attention_bias")
    extra = 0
    if kind in ("qwen2", "qwen2_moe") or wide_bias:
        extra += (heads + 2 * kv) * d_head
    if wide_bias:
        extra += d
    if s.flag("mlp_bias"):
        extra += 2 * d_ff + d
    if kind == "olmo2":
        extra += (heads + kv) * d_head
    extra *= layers
    if kind == "olmo":
        # OLMo 1 normalises without gains.
        extra -= layers * 2 * d + d
    return _gated(
        "gated blocks from config.json: num_hidden_layers, hidden_size, num_attention_heads, "
        "head_dim, num_key_value_heads, intermediate_size, vocab_size, tie_word_embeddings",
        n_layers=layers, d_model=d, n_heads=heads, d_head=d_head,
        d_ff=(s.count("moe_intermediate_size") if experts else None) or d_ff,
        vocab_size=vocab, n_kv_heads=kv, is_tied=s.flag("tie_word_embeddings", default=True),
        has_qk_norm=kind in _QK_NORM_PER_HEAD, n_experts=experts,
        n_active_experts=(s.count("num_experts_per_tok") or 2) if experts else 0, extra=extra,
    )  # fmt: skip


def _litgpt(s: Settings) -> ShapeCount | None:
    """Count a model of litgpt (``litgpt/config.py``, ``model.py``)."""
    d, layers, heads = s.count("n_embd"), s.count("n_layer"), s.count("n_head")
    vocab, kind = s.count("padded_vocab_size"), str(s.get("mlp_class_name") or "")
    d_ff = s.count("intermediate_size")
    if not (d and layers and heads and vocab and d_ff and kind):
        return None
    d_head = s.count("head_size") or d // heads
    groups = s.count("n_query_groups") or heads
    bias = s.flag("bias", default=True)
    qkv = (heads + 2 * groups) * d_head
    norm = d * (2 if str(s.get("norm_class_name") or "LayerNorm") == "LayerNorm" else 1)
    n_norms = 1 if s.flag("shared_attention_norm") else 2
    gated = kind in ("LLaMAMLP", "GemmaMLP")
    block = d * qkv + heads * d_head * d + (3 if gated else 2) * d * d_ff + n_norms * norm
    if bias or s.flag("attn_bias"):
        block += qkv
    if bias:
        block += d + (2 * d_ff if gated else d_ff) + d
    if s.count("n_expert") or kind not in ("LLaMAMLP", "GemmaMLP", "GptNeoxMLP"):
        return None
    blocks = layers * block + norm
    is_tied = s.flag("tie_embeddings")
    head = 0 if is_tied else vocab * d + (vocab if s.flag("lm_head_bias") else 0)
    return ShapeCount(
        total=vocab * d + head + blocks, kaplan=blocks, active=vocab * d + head + blocks,
        source=f"counted as litgpt's {kind} blocks from n_layer, n_embd, intermediate_size, "
        "n_head, padded_vocab_size",
    )  # fmt: skip


def _nanogpt(s: Settings) -> ShapeCount | None:
    """Count karpathy/nanoGPT's model.py: GPT-2 blocks, one matrix for embedding and head."""
    d, layers = s.count("n_embd"), s.count("n_layer")
    positions = s.count("block_size")
    if not (d and layers and s.count("n_head") and positions) or s.path("window_pattern"):
        return None
    has_bias = s.flag("bias")
    return _plain_blocks(
        s, d, layers, d_ff=4 * d, vocab=s.count("vocab_size") or _NANOGPT_VOCAB,
        positions=positions, is_tied=True, has_bias=has_bias, norm_biases=has_bias,
        rule="nanoGPT's GPT-2 blocks: n_layer, n_embd, block_size, vocab_size",
    )  # fmt: skip


def _megatron(s: Settings) -> ShapeCount | None:
    """Count a GPT of Megatron-LM from its arguments (``megatron/training/arguments.py``)."""
    d, layers, heads = (
        s.count("hidden_size"), s.count("num_layers"), s.count("num_attention_heads"),
    )  # fmt: skip
    vocab = s.count("padded_vocab_size")
    if not (d and layers and heads and vocab) or s.path("ffn_hidden_size") is None:
        return None
    is_gated = s.flag("swiglu")
    d_ff = s.count("ffn_hidden_size") or (int(4 * d * 2 / 3 / 64) * 64 if is_gated else 4 * d)
    d_head = s.count("kv_channels") or d // heads
    kv = s.count("num_query_groups") if s.flag("group_query_attention") else heads
    is_tied = not s.flag("untie_embeddings_and_output_weights")
    bias = s.flag("add_bias_linear", default=True)
    is_rms = str(s.get("normalization") or "LayerNorm") == "RMSNorm"
    qkv = (heads + 2 * (kv or heads)) * d_head
    norm = d if is_rms else 2 * d
    block = d * qkv + heads * d_head * d + (3 if is_gated else 2) * d * d_ff + 2 * norm
    if bias:
        block += qkv + d + (2 if is_gated else 1) * d_ff + d
    learned = str(s.get("position_embedding_type") or "learned_absolute") == "learned_absolute"
    positions = (s.count("max_position_embeddings") or 0) if learned else 0
    if s.count("num_experts"):
        return None
    kaplan = layers * block + norm
    total = kaplan + vocab * d * (1 if is_tied else 2) + positions * d
    return ShapeCount(
        total=total, kaplan=kaplan, active=total,
        source="counted from Megatron-LM's num_layers, hidden_size, ffn_hidden_size, "
        "num_attention_heads, padded_vocab_size",
    )  # fmt: skip


def _lingua(s: Settings) -> ShapeCount | None:
    """Count facebookresearch/lingua's transformer (``lingua/transformer.py``)."""
    d, layers = s.count("model/dim"), s.count("model/n_layers")
    heads, vocab = s.count("model/n_heads"), s.count("model/vocab_size", "vocab_size")
    if not (d and layers and heads and vocab):
        return None
    multiple = s.count("model/multiple_of") or _LLAMA_MULTIPLE
    wide = int(2 * 4 * d / 3) * (s.number("model/ffn_dim_multiplier") or 1.0)
    return _gated(
        "lingua's gated blocks: dim, n_layers, n_heads, multiple_of, vocab_size",
        n_layers=layers, d_model=d, n_heads=heads,
        d_head=s.count("model/head_dim") or d // heads, d_ff=-(-int(wide) // multiple) * multiple,
        vocab_size=vocab, n_kv_heads=s.count("model/n_kv_heads") or 0,
        is_tied=s.flag("model/weight_tying"), has_qk_norm=False,
    )  # fmt: skip


def _levanter(s: Settings) -> ShapeCount | None:
    """Count levanter's Llama (``levanter/models/llama.py``)."""
    d, layers = s.count("hidden_dim"), s.count("num_layers")
    heads, d_ff = s.count("num_heads"), s.count("intermediate_dim")
    vocab = s.count("vocab_size")
    if not (d and layers and heads and d_ff and vocab):
        return None
    return _gated(
        "levanter's gated blocks: hidden_dim, intermediate_dim, num_layers, num_heads, vocab_size",
        n_layers=layers, d_model=d, n_heads=heads,
        d_head=s.count("head_dim") or d // heads, d_ff=d_ff, vocab_size=vocab,
        n_kv_heads=s.count("num_kv_heads") or 0, is_tied=s.flag("tie_word_embeddings"),
        has_qk_norm=False,
    )  # fmt: skip


def _own(s: Settings) -> ShapeCount | None:
    """Count a model with our own names."""
    d, layers = s.count("d_model"), s.count("n_layers", "n_layer")
    heads, d_ff = s.count("n_heads", "n_head"), s.count("d_ff")
    vocab = s.count("vocab_size")
    if not (d and layers and heads and d_ff and vocab):
        return None
    return _gated(
        "gated blocks: n_layers, d_model, n_heads, d_ff, vocab_size",
        n_layers=layers, d_model=d, n_heads=heads,
        d_head=s.count("d_head") or d // heads, d_ff=d_ff, vocab_size=vocab,
        n_kv_heads=s.count("n_kv_heads") or 0, is_tied=s.flag("is_tied", "tie_word_embeddings"),
        has_qk_norm=s.flag("has_qk_norm"),
    )  # fmt: skip


_RULES: tuple[Rule, ...] = (
    _litgpt, _hugging_face, _nanogpt, _megatron, _lingua, _levanter, _own,
)  # fmt: skip


def _gated(rule: str, *, extra: int = 0, **shape: int | bool) -> ShapeCount:
    model = ModelShape(**shape)  # type: ignore[arg-type]
    counts = count_params(model).by_convention()
    return ShapeCount(
        total=counts["chinchilla"] + extra,
        kaplan=counts["kaplan"] + extra,
        active=counts["active"] + extra,
        source=f"counted as {rule}",
    )


def _plain_blocks(
    s: Settings, d: int, layers: int, *, d_ff: int, vocab: int, positions: int, is_tied: bool,
    has_bias: bool, norm_biases: bool, rule: str,
) -> ShapeCount:  # fmt: skip
    """Count blocks with attention of width d and a feed-forward layer of two matrices.

    Radford et al. 2019 (GPT-2); Black et al. 2022, arXiv:2204.06745 (GPT-NeoX).
    """
    norm = 2 * d if norm_biases else d
    block = 4 * d * d + 2 * d * d_ff + 2 * norm
    if has_bias:
        block += 4 * d + d_ff + d
    kaplan = layers * block + norm
    total = kaplan + vocab * d * (1 if is_tied else 2) + positions * d
    known = "" if s.count("vocab_size") else f" (assumed {vocab})"
    return ShapeCount(
        total=total, kaplan=kaplan, active=total,
        source=f"counted as {rule}{known}",
    )  # fmt: skip
