"""Presets of ``[model]``: the shapes of well-known models, as far as our decoder can have them.

Our decoder is pre-norm with RMSNorm, rotary positions and SwiGLU, without biases. A preset sets
defaults of the other keys of ``[model]``; keys that a sweep gives override them. Each preset names
its source and what it leaves out. The vocabulary is always that of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalelab.theory.shape import DEFAULT_FF_RATIO


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Defaults of ``[model]`` for a family of models.

    Attributes
    ----------
    source : str
        Where the shapes are published.
    values : Mapping
        Keys of ``[model]`` with their values.
    left_out : str
        What our decoder does differently.
    vocabulary : int
        Tokens of the published vocabulary, for ``--tokenizer bpe:SIZE``; never set by the preset.
    """

    source: str
    values: Mapping[str, Any]
    left_out: str
    vocabulary: int


PRESETS: Mapping[str, Preset] = {
    "llama": Preset(
        source="Touvron et al. 2023, arXiv:2302.13971, table 2 (LLaMA 7B to 65B)",
        values={
            "d_head": 128,
            "heads_per_kv_head": 1,
            "ff_multiple": DEFAULT_FF_RATIO,
            "aspect": ((4096, 128.0), (5120, 128.0), (6656, 6656 / 60), (8192, 102.4)),
            "is_tied": False,
            "has_qk_norm": False,
        },
        left_out="d_ff is rounded up to the multiples of our tables, not of 256. Key heads shared "
        "by 8 query heads, as in Llama 2 70B, are --heads-per-kv-head 8",
        vocabulary=32_000,
    ),
    "gpt2": Preset(
        source="Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 2",
        values={
            "d_head": 64,
            "heads_per_kv_head": 1,
            "ff_multiple": DEFAULT_FF_RATIO,
            "aspect": ((768, 64.0), (1024, 1024 / 24), (1280, 1280 / 36), (1600, 1600 / 48)),
            "is_tied": True,
            "has_qk_norm": False,
        },
        left_out="Learned positions, LayerNorm, biases and GELU become rotary positions, RMSNorm "
        "and SwiGLU; SwiGLU of 8/3 x d_model has the parameters of GELU of 4 x d_model",
        vocabulary=50_257,
    ),
    "nanochat": Preset(
        source="github.com/karpathy/nanochat, scripts/base_train.py (width = 64 x depth, rounded "
        "up to heads of 128) and nanochat/gpt.py",
        values={
            "d_head": 128,
            "heads_per_kv_head": 1,
            "ff_multiple": DEFAULT_FF_RATIO,
            "aspect": ((1, 64.0),),
            "is_tied": False,
            "has_qk_norm": True,
        },
        left_out="ReLU^2 of 4 x d_model becomes SwiGLU with as many parameters; norms have gains; "
        "no norm after the embedding and no zero initialization. Its optimizer is --optimizer muon",
        vocabulary=65_536,
    ),
    "olmo2": Preset(
        source="OLMo Team 2025, 2 OLMo 2 Furious, arXiv:2501.00656, section 2 (OLMo 2 7B and 13B)",
        values={
            "d_head": 128,
            "heads_per_kv_head": 1,
            "ff_multiple": DEFAULT_FF_RATIO,
            "aspect": ((1, 128.0),),
            "is_tied": False,
            "has_qk_norm": True,
        },
        left_out="Norms are before attention and feed-forward layer, not after them, and QK-norm "
        "is per head. Its z-loss is a training setting",
        vocabulary=100_278,
    ),
}
