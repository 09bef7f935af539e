"""Published language models as facts: parameters, tokens, compute, year, where each was printed.

N is the parameters that a token passes through (all of them, in a dense model) and D the tokens
processed, repeats included. C is what the developers printed, never an estimate; where it is None
nothing was printed. C = 6 N D does not hold for encoder-decoders (about half), nor for figures
that include recomputation (OPT). Losses are left out: tokenizers and validation sets differ, so
they do not compare. Models belong on the N-D and N-C planes only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.errors import UsageError
from scalelab.theory.accounting import train_flops_6nd
from scalelab.theory.laws.base import Law
from scalelab.units import format_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """One model as it was published.

    Attributes
    ----------
    name : str
    year : int
        Of its first release.
    architecture : str
        ``dense-decoder``, ``moe-decoder``, ``dense-encoder``, ..
    n_params : float
        Parameters a token passes through.
    n_tokens : float
        Tokens processed in pre-training.
    printed_flops : float or None
        Training compute as its developers printed it, FLOP.
    source : str
        Where the numbers are printed.
    """

    name: str
    year: int
    architecture: str
    n_params: float
    n_tokens: float
    printed_flops: float | None
    source: str

    @property
    def flops(self) -> float:
        """Training compute as 6 N D, the convention of the planes it is drawn on."""
        return train_flops_6nd(self.n_params, self.n_tokens)

    @property
    def is_decoder(self) -> bool:
        """Whether it is a decoder trained on next tokens, as the laws are about."""
        return self.architecture in ("dense-decoder", "moe-decoder")


_SOURCES = {
    "brown2020": "Brown et al. 2020, GPT-3, Table D.1, arXiv:2005.14165",
    "tay2022": "Tay et al. 2022, UL2, arXiv:2205.05131",
    "gptneo2021": "GPT-Neo 1.3B model card, huggingface.co/EleutherAI/gpt-neo-1.3B",
    "gptneo2021b": "GPT-Neo 2.7B model card, huggingface.co/EleutherAI/gpt-neo-2.7B",
    "gptj2021": "GPT-J 6B model card (Wang and Komatsuzaki 2021), "
    "huggingface.co/EleutherAI/gpt-j-6b",
    "black2022": "Black et al. 2022, GPT-NeoX-20B, arXiv:2204.06745",
    "biderman2023": "Biderman et al. 2023, Pythia, and model cards, arXiv:2304.01373",
    "dey2023": "Dey et al. 2023, Cerebras-GPT (arXiv:2304.03208), and model cards, "
    "huggingface.co/cerebras/Cerebras-GPT-13B",
    "rae2021": "Rae et al. 2021, Gopher, Table A26, arXiv:2112.11446",
    "hoffmann2022": "Hoffmann et al. 2022, Chinchilla, Tables 1 and 3, arXiv:2203.15556",
    "chowdhery2022": "Chowdhery et al. 2022, PaLM, arXiv:2204.02311",
    "du2021": "Du et al. 2021, GLaM, arXiv:2112.06905",
    "fedus2021": "Fedus et al. 2021, Switch Transformers, arXiv:2101.03961",
    "gemma2024": "Gemma Team 2024, Gemma, arXiv:2403.08295",
    "gemma2024b": "Gemma Team 2024, Gemma 2, arXiv:2408.00118",
    "gemma2025": "Gemma Team 2025, Gemma 3, arXiv:2503.19786",
    "xue2020": "Xue et al. 2020, mT5, arXiv:2010.11934",
    "smith2022": "Smith et al. 2022, Megatron-Turing NLG 530B, arXiv:2201.11990",
    "lieber2021": "Lieber et al. 2021, Jurassic-1, "
    "uploads-ssl.webflow.com/60fd4503684b466578c0d307/61138924626a6981ee09caf6_jurassic_tech_paper.pdf",
    "zhang2022": "Zhang et al. 2022, OPT (arXiv:2205.01068), "
    "github.com/facebookresearch/metaseq/blob/main/projects/OPT/chronicles/final_update.md",
    "bigscience2022": "BigScience Workshop 2022, BLOOM, arXiv:2211.05100",
    "zeng2022": "Zeng et al. 2022, GLM-130B, arXiv:2210.02414",
    "taylor2022": "Taylor et al. 2022, Galactica, arXiv:2211.09085",
    "wu2023": "Wu et al. 2023, BloombergGPT, Table 4, arXiv:2303.17564",
    "li2023": "Li et al. 2023, StarCoder, arXiv:2305.06161",
    "almazrouei2023": "Almazrouei et al. 2023, The Falcon Series, arXiv:2311.16867",
    "almazrouei2023b": "Almazrouei et al. 2023, The Falcon Series, Table 1, arXiv:2311.16867",
    "mosaicml2023": "MosaicML 2023, Introducing MPT-7B (blog), www.databricks.com/blog/mpt-7b",
    "mosaicml2023b": "MosaicML 2023, MPT-30B (blog), www.databricks.com/blog/mpt-30b",
    "touvron2023": "Touvron et al. 2023a, LLaMA, Table 2, arXiv:2302.13971",
    "touvron2023b": "Touvron et al. 2023b, Llama 2, Table 1, arXiv:2307.09288",
    "meta2024": "Meta 2024, Llama 3 model card, "
    "github.com/meta-llama/llama3/blob/main/MODEL_CARD.md",
    "grattafiori2024": "Grattafiori et al. 2024, The Llama 3 Herd of Models, arXiv:2407.21783",
    "meta2025": "Meta 2025, Llama 4 model card, "
    "github.com/meta-llama/llama-models/blob/main/models/llama4/MODEL_CARD.md",
    "mistral2025": "Mistral Small 3 release (as quoted by Epoch AI), "
    "mistral.ai/news/mistral-small-3",
    "bai2023": "Bai et al. 2023, Qwen Technical Report, Table 1, arXiv:2309.16609",
    "qwenb2023": "Qwen-72B model card, huggingface.co/Qwen/Qwen-72B",
    "yang2024": "Yang et al. 2024, Qwen2 Technical Report, arXiv:2407.10671",
    "qwen2024": "Qwen Team 2024, Qwen2.5 Technical Report, arXiv:2412.15115",
    "yang2025": "Yang et al. 2025, Qwen3 Technical Report, arXiv:2505.09388",
    "deepseekai2024": "DeepSeek-AI 2024, DeepSeek LLM, arXiv:2401.02954",
    "dai2024": "Dai et al. 2024, DeepSeekMoE, arXiv:2401.06066",
    "deepseekai2024b": "DeepSeek-AI 2024, DeepSeek-V2, arXiv:2405.04434",
    "deepseekai2024c": "DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437",
    "groeneveld2024": "Groeneveld et al. 2024, OLMo, arXiv:2402.00838",
    "olmo2025": "OLMo Team 2025, 2 OLMo 2 Furious, and model cards, arXiv:2501.00656",
    "phi2023": "Phi-2 model card, huggingface.co/microsoft/phi-2",
    "abdin2024": "Abdin et al. 2024, Phi-3 Technical Report, arXiv:2404.14219",
    "zhang2024": "Zhang et al. 2024, TinyLlama, arXiv:2401.02385",
    "ben2025": "Ben Allal et al. 2025, SmolLM2, arXiv:2502.02737",
    "tow2023": "Tow et al. 2023, StableLM-3B-4E1T model card, "
    "huggingface.co/stabilityai/stablelm-3b-4e1t",
    "ai2024": "01.AI 2024, Yi, arXiv:2403.04652",
    "yang2023": "Yang et al. 2023, Baichuan 2, arXiv:2309.10305",
    "wei2023": "Wei et al. 2023, Skywork, arXiv:2310.19341",
    "parmar2024": "Parmar et al. 2024, Nemotron-4 15B, arXiv:2402.16819",
    "nvidia2024": "NVIDIA 2024, Nemotron-4 340B, arXiv:2406.11704",
    "databricks2024": "Databricks 2024, Introducing DBRX (blog), "
    "www.databricks.com/blog/introducing-dbrx-new-state-art-open-llm",
    "moonshot2025": "Moonshot AI 2025, Kimi K2, moonshotai.github.io/Kimi-K2/",
    "glm2025": "GLM-4.5 Team 2025, arXiv:2508.06471",
}

_ROWS: tuple[tuple[str, int, str, float, float, float | None, str], ...] = (
    ("BERT-Base", 2018, "dense-encoder", 1.09e8, 2.5e11, 1.64e20, "brown2020"),
    ("BERT-Large", 2018, "dense-encoder", 3.55e8, 2.5e11, 5.33e20, "brown2020"),
    ("RoBERTa-Base", 2019, "dense-encoder", 1.25e8, 2e12, 1.5e21, "brown2020"),
    ("RoBERTa-Large", 2019, "dense-encoder", 3.55e8, 2e12, 4.26e21, "brown2020"),
    ("T5-Small", 2019, "dense-encoder-decoder", 6e7, 1e12, 1.8e20, "brown2020"),
    ("T5-Base", 2019, "dense-encoder-decoder", 2.2e8, 1e12, 6.6e20, "brown2020"),
    ("T5-Large", 2019, "dense-encoder-decoder", 7.7e8, 1e12, 2.31e21, "brown2020"),
    ("T5-3B", 2019, "dense-encoder-decoder", 3e9, 1e12, 9e21, "brown2020"),
    ("T5-11B", 2019, "dense-encoder-decoder", 1.1e10, 1e12, 3.3e22, "brown2020"),
    ("UL2-20B", 2022, "dense-encoder-decoder", 2e10, 1e12, None, "tay2022"),
    ("GPT-3 Small", 2020, "dense-decoder", 1.25e8, 3e11, 2.25e20, "brown2020"),
    ("GPT-3 Medium", 2020, "dense-decoder", 3.56e8, 3e11, 6.41e20, "brown2020"),
    ("GPT-3 Large", 2020, "dense-decoder", 7.6e8, 3e11, 1.37e21, "brown2020"),
    ("GPT-3 XL", 2020, "dense-decoder", 1.32e9, 3e11, 2.38e21, "brown2020"),
    ("GPT-3 2.7B", 2020, "dense-decoder", 2.65e9, 3e11, 4.77e21, "brown2020"),
    ("GPT-3 6.7B", 2020, "dense-decoder", 6.66e9, 3e11, 1.2e22, "brown2020"),
    ("GPT-3 13B", 2020, "dense-decoder", 1.285e10, 3e11, 2.31e22, "brown2020"),
    ("GPT-3 175B", 2020, "dense-decoder", 1.746e11, 3e11, 3.14e23, "brown2020"),
    ("GPT-Neo 1.3B", 2021, "dense-decoder", 1.3e9, 3.8e11, None, "gptneo2021"),
    ("GPT-Neo 2.7B", 2021, "dense-decoder", 2.7e9, 4.2e11, None, "gptneo2021b"),
    ("GPT-J 6B", 2021, "dense-decoder", 6.053381344e9, 4.02e11, None, "gptj2021"),
    ("GPT-NeoX-20B", 2022, "dense-decoder", 2.055456768e10, 4.72e11, None, "black2022"),
    ("Pythia-70M", 2023, "dense-decoder", 7.0426624e7, 2.99892736e11, None, "biderman2023"),
    ("Pythia-160M", 2023, "dense-decoder", 1.62322944e8, 2.99892736e11, None, "biderman2023"),
    ("Pythia-410M", 2023, "dense-decoder", 4.05334016e8, 2.99892736e11, None, "biderman2023"),
    ("Pythia-1B", 2023, "dense-decoder", 1.011781632e9, 2.99892736e11, None, "biderman2023"),
    ("Pythia-1.4B", 2023, "dense-decoder", 1.414647808e9, 2.99892736e11, None, "biderman2023"),
    ("Pythia-2.8B", 2023, "dense-decoder", 2.77520896e9, 2.99892736e11, None, "biderman2023"),
    ("Pythia-6.9B", 2023, "dense-decoder", 6.857302016e9, 2.99892736e11, None, "biderman2023"),
    ("Pythia-12B", 2023, "dense-decoder", 1.184607232e10, 2.99892736e11, None, "biderman2023"),
    ("Cerebras-GPT-111M", 2023, "dense-decoder", 1.11e8, 2.22e9, None, "dey2023"),
    ("Cerebras-GPT-256M", 2023, "dense-decoder", 2.56e8, 5.12e9, None, "dey2023"),
    ("Cerebras-GPT-590M", 2023, "dense-decoder", 5.9e8, 1.18e10, None, "dey2023"),
    ("Cerebras-GPT-1.3B", 2023, "dense-decoder", 1.3e9, 2.63e10, None, "dey2023"),
    ("Cerebras-GPT-2.7B", 2023, "dense-decoder", 2.7e9, 5.3e10, None, "dey2023"),
    ("Cerebras-GPT-6.7B", 2023, "dense-decoder", 6.7e9, 1.33e11, None, "dey2023"),
    ("Cerebras-GPT-13B", 2023, "dense-decoder", 1.3e10, 2.57e11, None, "dey2023"),
    ("Gopher 280B", 2021, "dense-decoder", 2.8e11, 3e11, 6.31e23, "rae2021"),
    ("Chinchilla 70B", 2022, "dense-decoder", 7e10, 1.4e12, 5.76e23, "hoffmann2022"),
    ("PaLM 8B", 2022, "dense-decoder", 8.63e9, 7.8e11, None, "chowdhery2022"),
    ("PaLM 62B", 2022, "dense-decoder", 6.25e10, 7.95e11, None, "chowdhery2022"),
    ("PaLM 540B", 2022, "dense-decoder", 5.4035e11, 7.8e11, 2.5e24, "chowdhery2022"),
    ("GLaM 64B/64E", 2021, "moe-decoder", 9.66e10, 6e11, None, "du2021"),
    ("Switch-C", 2021, "moe-encoder-decoder", 1.571e12, 5.76e11, 8.22e22, "fedus2021"),
    ("Gemma 2B", 2024, "dense-decoder", 2.51e9, 3e12, None, "gemma2024"),
    ("Gemma 7B", 2024, "dense-decoder", 8.54e9, 6e12, None, "gemma2024"),
    ("Gemma 2 2B", 2024, "dense-decoder", 2.6e9, 2e12, None, "gemma2024b"),
    ("Gemma 2 9B", 2024, "dense-decoder", 9.2e9, 8e12, None, "gemma2024b"),
    ("Gemma 2 27B", 2024, "dense-decoder", 2.72e10, 1.3e13, None, "gemma2024b"),
    ("Gemma 3 1B", 2025, "dense-decoder", 1e9, 2e12, None, "gemma2025"),
    ("Gemma 3 4B", 2025, "dense-decoder", 4e9, 4e12, None, "gemma2025"),
    ("Gemma 3 12B", 2025, "dense-decoder", 1.2e10, 1.2e13, None, "gemma2025"),
    ("Gemma 3 27B", 2025, "dense-decoder", 2.7e10, 1.4e13, None, "gemma2025"),
    ("mT5-XXL", 2020, "dense-encoder-decoder", 1.3e10, 1e12, None, "xue2020"),
    ("MT-NLG 530B", 2021, "dense-decoder", 5.3e11, 2.7e11, None, "smith2022"),
    ("Jurassic-1 Jumbo", 2021, "dense-decoder", 1.78e11, 3e11, None, "lieber2021"),
    ("OPT-175B", 2022, "dense-decoder", 1.75e11, 3e11, 4.3e23, "zhang2022"),
    ("BLOOM-176B", 2022, "dense-decoder", 1.762473e11, 3.66e11, None, "bigscience2022"),
    ("GLM-130B", 2022, "dense-decoder", 1.3e11, 4e11, None, "zeng2022"),
    ("Galactica 120B", 2022, "dense-decoder", 1.2e11, 4.5e11, None, "taylor2022"),
    ("BloombergGPT", 2023, "dense-decoder", 5.055887e10, 5.69e11, 2.36e23, "wu2023"),
    ("StarCoderBase 15.5B", 2023, "dense-decoder", 1.55e10, 1e12, 8.46e22, "li2023"),
    ("Falcon-7B", 2023, "dense-decoder", 7e9, 1.5e12, None, "almazrouei2023"),
    ("Falcon-40B", 2023, "dense-decoder", 4e10, 1e12, 2.42e23, "almazrouei2023b"),
    ("Falcon-180B", 2023, "dense-decoder", 1.8e11, 3.5e12, 3.76e24, "almazrouei2023b"),
    ("MPT-7B", 2023, "dense-decoder", 6.7e9, 1e12, None, "mosaicml2023"),
    ("MPT-30B", 2023, "dense-decoder", 3e10, 1e12, None, "mosaicml2023b"),
    ("LLaMA 7B", 2023, "dense-decoder", 6.7e9, 1e12, None, "touvron2023"),
    ("LLaMA 13B", 2023, "dense-decoder", 1.3e10, 1e12, None, "touvron2023"),
    ("LLaMA 33B", 2023, "dense-decoder", 3.25e10, 1.4e12, None, "touvron2023"),
    ("LLaMA 65B", 2023, "dense-decoder", 6.52e10, 1.4e12, None, "touvron2023"),
    ("Llama 2 7B", 2023, "dense-decoder", 7e9, 2e12, None, "touvron2023b"),
    ("Llama 2 13B", 2023, "dense-decoder", 1.3e10, 2e12, None, "touvron2023b"),
    ("Llama 2 70B", 2023, "dense-decoder", 7e10, 2e12, None, "touvron2023b"),
    ("Llama 3 8B", 2024, "dense-decoder", 8e9, 1.5e13, None, "meta2024"),
    ("Llama 3 70B", 2024, "dense-decoder", 7e10, 1.5e13, None, "meta2024"),
    ("Llama 3.1 405B", 2024, "dense-decoder", 4.05e11, 1.56e13, 3.8e25, "grattafiori2024"),
    ("Llama 4 Scout", 2025, "moe-decoder", 1.7e10, 4e13, None, "meta2025"),
    ("Llama 4 Maverick", 2025, "moe-decoder", 1.7e10, 2.2e13, None, "meta2025"),
    ("Mistral Small 3 24B", 2025, "dense-decoder", 2.4e10, 8e12, None, "mistral2025"),
    ("Qwen-7B", 2023, "dense-decoder", 7e9, 2.4e12, None, "bai2023"),
    ("Qwen-14B", 2023, "dense-decoder", 1.4e10, 3e12, None, "bai2023"),
    ("Qwen-72B", 2023, "dense-decoder", 7.2e10, 3e12, None, "qwenb2023"),
    ("Qwen2-72B", 2024, "dense-decoder", 7.271e10, 7e12, None, "yang2024"),
    ("Qwen2.5-7B", 2024, "dense-decoder", 7.61e9, 1.8e13, None, "qwen2024"),
    ("Qwen2.5-72B", 2024, "dense-decoder", 7.27e10, 1.8e13, None, "qwen2024"),
    ("Qwen3-32B", 2025, "dense-decoder", 3.28e10, 3.6e13, None, "yang2025"),
    ("Qwen3-30B-A3B", 2025, "moe-decoder", 3.3e9, 3.6e13, None, "yang2025"),
    ("Qwen3-235B-A22B", 2025, "moe-decoder", 2.2e10, 3.6e13, None, "yang2025"),
    ("DeepSeek LLM 7B", 2024, "dense-decoder", 6.9e9, 2e12, None, "deepseekai2024"),
    ("DeepSeek LLM 67B", 2024, "dense-decoder", 6.7e10, 2e12, None, "deepseekai2024"),
    ("DeepSeekMoE 16B", 2024, "moe-decoder", 2.8e9, 2e12, None, "dai2024"),
    ("DeepSeek-V2", 2024, "moe-decoder", 2.1e10, 8.1e12, None, "deepseekai2024b"),
    ("DeepSeek-V3", 2024, "moe-decoder", 3.7e10, 1.48e13, None, "deepseekai2024c"),
    ("OLMo 7B", 2024, "dense-decoder", 6.9e9, 2.46e12, None, "groeneveld2024"),
    ("OLMo 2 7B", 2025, "dense-decoder", 7.3e9, 4e12, None, "olmo2025"),
    ("OLMo 2 13B", 2025, "dense-decoder", 1.37e10, 5e12, None, "olmo2025"),
    ("OLMo 2 32B", 2025, "dense-decoder", 3.22e10, 6e12, None, "olmo2025"),
    ("Phi-2", 2023, "dense-decoder", 2.7e9, 1.4e12, None, "phi2023"),
    ("Phi-3-mini", 2024, "dense-decoder", 3.8e9, 3.3e12, None, "abdin2024"),
    ("TinyLlama 1.1B", 2024, "dense-decoder", 1.1e9, 3e12, None, "zhang2024"),
    ("SmolLM2-1.7B", 2025, "dense-decoder", 1.7e9, 1.1e13, None, "ben2025"),
    ("StableLM-3B-4E1T", 2023, "dense-decoder", 2.8e9, 4e12, None, "tow2023"),
    ("Yi-34B", 2023, "dense-decoder", 3.4e10, 3.1e12, None, "ai2024"),
    ("Baichuan 2 13B", 2023, "dense-decoder", 1.3e10, 2.6e12, None, "yang2023"),
    ("Skywork-13B", 2023, "dense-decoder", 1.3e10, 3.2e12, None, "wei2023"),
    ("Nemotron-4 15B", 2024, "dense-decoder", 1.5e10, 8e12, None, "parmar2024"),
    ("Nemotron-4 340B", 2024, "dense-decoder", 3.4e11, 9e12, None, "nvidia2024"),
    ("DBRX", 2024, "moe-decoder", 3.6e10, 1.2e13, None, "databricks2024"),
    ("Kimi K2", 2025, "moe-decoder", 3.2e10, 1.55e13, None, "moonshot2025"),
    ("GLM-4.5", 2025, "moe-decoder", 3.2e10, 2.3e13, None, "glm2025"),
)

PUBLISHED = tuple(
    PublishedModel(
        name=name,
        year=year,
        architecture=architecture,
        n_params=n_params,
        n_tokens=n_tokens,
        printed_flops=flops,
        source=_SOURCES[key],
    )
    for name, year, architecture, n_params, n_tokens, flops, key in _ROWS
)
"""Every model of the collection whose N and D were both published."""

WELL_KNOWN = (
    "GPT-3 175B",
    "Gopher 280B",
    "MT-NLG 530B",
    "Chinchilla 70B",
    "PaLM 540B",
    "OPT-175B",
    "BLOOM-176B",
    "GLaM 64B/64E",
    "LLaMA 7B",
    "LLaMA 65B",
    "Llama 2 70B",
    "Llama 3 8B",
    "Llama 3.1 405B",
)
"""Those that a figure names beside their points."""


def find_published(name: str) -> PublishedModel | None:
    """Return the model of this name, or None."""
    return next((model for model in PUBLISHED if model.name == name), None)


def flops_for_loss(law: Law, loss_nats: float, start: float) -> float:
    """Return the least compute at which the law's frontier reaches a loss; NaN where it never does.

    Parameters
    ----------
    law : Law
        A form of N and D with a frontier.
    loss_nats : float
    start : float
        A compute above the answer, FLOP: bisection goes down from it.
    """

    def best(log_flops: float) -> float:
        n_params, n_tokens = law.optimal(math.exp(log_flops))
        return float(law.loss({"n_params": n_params, "n_tokens": n_tokens}))

    high = math.log(start)
    if best(high) > loss_nats:
        return math.nan
    low = high
    while best(low) <= loss_nats:
        low -= 1.0
        if low < 0:
            return math.nan
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if best(middle) > loss_nats else (low, middle)
    return math.exp(high)


def verdicts(law: Law) -> list[dict[str, Any]]:
    """Return each published decoder with its distance from the law's optimum at its own compute.

    ``ratio`` is its N over the optimal N: above 1 it is too large and saw too few tokens.
    ``saved`` is the share of its compute that the optimum needs less for the same predicted loss.

    Raises
    ------
    UsageError
        When the form has no trade-off between N and D alone, or a term of the law has vanished.
    """
    if set(law.columns) != {"n_params", "n_tokens"}:
        raise UsageError(
            f"published models beside the form {law.name}",
            "a form of n_params and n_tokens",
            "Choose a form such as chinchilla.",
        )
    out = []
    for model in PUBLISHED:
        if not model.is_decoder:
            continue
        with np.errstate(all="ignore"):
            optimal = float(law.optimal(model.flops)[0])
        if not (math.isfinite(optimal) and optimal > 0):
            raise UsageError(
                f"published models beside a law whose optimal N at {format_flops(model.flops)} is "
                f"{optimal:g}",
                "a law with an optimum between few and many parameters",
                "Fit more runs: one of its terms has vanished.",
            )
        loss = float(law.loss({"n_params": model.n_params, "n_tokens": model.n_tokens}))
        ratio = model.n_params / optimal
        out.append(
            {
                "model": model.name,
                "year": model.year,
                "n_params": model.n_params,
                "n_tokens": model.n_tokens,
                "flops": model.flops,
                "optimal_n_params": optimal,
                "ratio": ratio,
                "verdict": _verdict(ratio),
                "saved": 1 - flops_for_loss(law, loss, model.flops * (1 + 1e-9)) / model.flops,
                "source": model.source,
            }
        )
    return out


NEAR = 1.25
"""Factor from the optimal N within which a model counts as near it."""


def _verdict(ratio: float) -> str:
    if ratio > NEAR:
        return "under-trained: too large for its compute"
    if ratio < 1 / NEAR:
        return "over-trained: smaller than optimal, cheaper to serve"
    return "near the optimum"
