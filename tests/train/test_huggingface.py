"""Exported models in transformers: equal logits, equal tokens, refusals."""

import base64
import json
import stat
from dataclasses import replace

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer

from scalelab.corpus.dataset import prepare
from scalelab.corpus.merged_ranks import byte_characters
from scalelab.corpus.prepared_tokenizer import prepared_tokenizer
from scalelab.corpus.source import DataSource
from scalelab.corpus.tokenizer import END_OF_DOCUMENT, cached_bpe
from scalelab.errors import UsageError
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.huggingface.check import max_logit_difference
from scalelab.train.huggingface.export import export_huggingface
from scalelab.train.huggingface.layouts import class_of, config_of, tensors_of
from scalelab.train.huggingface.tokenizer import PROBES, tokenizer_files
from scalelab.train.parameters import initialize_, lay_out
from scalelab.train.weights import Weights

LLAMA = {"has_qk_norm": False}
EXPERTS = {"n_experts": 6, "n_active_experts": 2}
CASES = {
    "dense": (LLAMA, {}, "LlamaForCausalLM"),
    "gqa": ({**LLAMA, "n_kv_heads": 2}, {}, "LlamaForCausalLM"),
    "tied": ({**LLAMA, "is_tied": True}, {}, "LlamaForCausalLM"),
    "qk-norm": ({"d_head": 8, "n_kv_heads": 1, "is_tied": True}, {}, "Qwen3ForCausalLM"),
    "experts": ({**LLAMA, **EXPERTS}, {}, "MixtralForCausalLM"),
    "experts qk-norm": (EXPERTS, {}, "Qwen3MoeForCausalLM"),
    "shared": ({**LLAMA, **EXPERTS, "d_shared_expert": 24}, {}, "Qwen2MoeForCausalLM"),
    "shared qk-norm": (
        {**EXPERTS, "d_shared_expert": 24, "n_kv_heads": 2, "is_tied": True},
        {},
        "Qwen3NextForCausalLM",
    ),
    "mup": (LLAMA, {"parametrization": "mup"}, "LlamaForCausalLM"),
    "mup tied": ({"is_tied": True}, {"parametrization": "mup"}, "Qwen3ForCausalLM"),
    "completep": ({}, {"parametrization": "completep"}, "Qwen3ForCausalLM"),
    "softcap": (LLAMA, {"logit_softcap": 3.0}, "VaultGemmaForCausalLM"),
    "softcap tied": (
        {**LLAMA, "is_tied": True},
        {"logit_softcap": 3.0, "parametrization": "mup"},
        "VaultGemmaForCausalLM",
    ),
    "masked": ({}, {"is_document_masked": True}, "Qwen3ForCausalLM"),
}


def make_spec(shape, spec):
    base = {"n_layers": 3, "d_model": 48, "n_heads": 4, "d_head": 12, "d_ff": 40, "vocab_size": 200}
    return RunSpec(
        shape=ModelShape(**{**base, **shape}),
        seq_len=64,
        batch_seqs=1,
        n_steps=1,
        lr=1e-3,
        warmup_steps=0,
        data_fingerprint="a",
        eval_fingerprint="b",
        tokenizer="bytes",
        seed=1,
        **spec,
    )


def make_weights(spec):
    """Return weights far from their initial values: each gain, gate and logit counts."""
    layout = lay_out(spec.shape)
    flat = torch.zeros(layout.n_values)
    initialize_(flat, layout, spec)
    generator = torch.Generator().manual_seed(3)
    for entry in layout.entries:
        values = entry.view(flat)
        if entry.kind == "norm":
            values += 0.3 * torch.randn(values.shape, generator=generator)
        elif entry.kind in ("embedding", "router"):
            values *= 30 if entry.kind == "embedding" else 3
    return Weights(run_id="run", spec=spec, step=1, layout=layout, flat=flat)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits_in_transformers_equal_ours(case, tmp_path):
    shape, spec, class_name = CASES[case]
    weights = make_weights(make_spec(shape, spec))
    model = export_huggingface(weights, None, tmp_path / "model")
    assert model.class_name == class_name
    assert max_logit_difference(model.folder, weights, None) < 5e-5
    names = {path.name for path in model.folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "scalelab.json"}
    assert stat.S_IMODE((model.folder / "model.safetensors").stat().st_mode) & 0o044


def test_each_part_of_the_layout_is_a_tensor_of_its_shape():
    spec = make_spec({**EXPERTS, "d_shared_expert": 24, "n_kv_heads": 2}, {})
    tensors = tensors_of(make_weights(spec))
    assert tensors["model.embed_tokens.weight"].shape == (200, 48)
    assert tensors["lm_head.weight"].shape == (200, 48)
    assert tensors["model.layers.2.self_attn.q_proj.weight"].shape == (2 * 48, 48)
    assert tensors["model.layers.0.mlp.experts.5.up_proj.weight"].shape == (40, 48)
    assert not tensors["model.layers.1.mlp.shared_expert_gate.weight"].any()
    assert len(tensors) == 3 + 3 * (8 + 1 + 6 * 3 + 4)


@pytest.mark.parametrize("more", [{}, {**LLAMA, **EXPERTS}, {**LLAMA, "n_heads": 5}])
def test_a_softcap_that_no_class_has_is_refused_with_its_reason(more):
    spec = make_spec(more, {"logit_softcap": 30.0})
    with pytest.raises(UsageError, match="soft-cap in a dense model without QK-norm"):
        class_of(spec)


def test_dtype_and_context_are_in_the_config(tmp_path):
    spec = make_spec({}, {})
    config = config_of(spec, "bfloat16", 7)
    assert (config["dtype"], config["max_position_embeddings"]) == ("bfloat16", 64)
    assert (config["eos_token_id"], config["head_dim"]) == (7, 12)
    with pytest.raises(UsageError, match="Did you mean bfloat16"):
        export_huggingface(make_weights(spec), None, tmp_path / "x", dtype="bfloat1")


def test_a_folder_that_exists_stays_as_it_is(tmp_path):
    with pytest.raises(UsageError, match="which exists"):
        export_huggingface(make_weights(make_spec({}, {})), None, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    words = "the tokenizer of a small corpus gives the ids that its model has seen. "
    (folder / "a.txt").write_text(words * 60 + "".join(PROBES).replace("\x00", ""))
    (folder / "b.txt").write_text((words[::-1] + "123 café\n") * 60)
    return folder


@pytest.fixture(scope="module")
def tokenizers(text, tmp_path_factory):
    """Return the names of small tokenizers of each format, trained here."""
    folder = tmp_path_factory.mktemp("tokenizers")
    corpus = folder / "corpus"
    corpus.write_text("\n".join(path.read_text() for path in sorted(text.iterdir())))
    made = cached_bpe([corpus.read_bytes()], "x", 320, folder)
    content = json.loads(made.read_text())
    # What a published tokenizer has beside its vocabulary.
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst"}
    content["truncation"]["stride"] = 0
    piece = {"SpecialToken": {"id": END_OF_DOCUMENT, "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {
            END_OF_DOCUMENT: {"id": END_OF_DOCUMENT, "ids": [0], "tokens": [END_OF_DOCUMENT]}
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokens = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
    bytes_of = byte_characters()
    words = [bytes(bytes_of[c] for c in token) for token, index in tokens if index]
    ranks = [f"{base64.b64encode(word).decode()} {rank}" for rank, word in enumerate(words)]
    (folder / "ranks.tiktoken").write_text("\n".join(ranks))
    for kind in ("unigram", "bpe"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(folder / kind),
            vocab_size=360,
            model_type=kind,
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return folder


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("tokenizer.json", None), ("bpe.model", None), ("unigram.model", None)]
    + [("ranks.tiktoken", pattern) for pattern in ("gpt2", "cl100k", "o200k", r"\S+|\s+")],
)
def test_a_tokenizer_of_a_file_gives_the_ids_of_the_data(text, tokenizers, name, pattern, tmp_path):
    source = DataSource(
        paths=(str(text),),
        tokenizer=str(tokenizers / name),
        tokenizer_pattern=pattern,
        eval_tokens=64,
    )
    dataset = prepare(source, tmp_path)
    files, warnings = tokenizer_files(dataset, 64)
    assert len(warnings) == (name == "unigram.model")
    written = Tokenizer.from_str(files["tokenizer.json"])
    written.encode_special_tokens = True
    words = [*PROBES, "the model's ids, 1234567 TIMES\n\n x", "$ ^ \n$\n end\n"]
    ours = prepared_tokenizer(dataset).encode(each.encode() for each in words)
    for each, found in zip(words, ours, strict=True):
        assert written.encode(each).ids == found[:-1].tolist()
    config = json.loads(files["tokenizer_config.json"])
    assert written.token_to_id(config["eos_token"]) == dataset.end_token


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_a_tokenizer_json_gives_the_ids_of_the_data(text, tokenizer, tmp_path):
    source = DataSource(paths=(str(text),), tokenizer=tokenizer, eval_tokens=64)
    dataset = prepare(source, tmp_path)
    files, warnings = tokenizer_files(dataset, 64)
    assert not warnings
    written = Tokenizer.from_str(files["tokenizer.json"])
    written.encode_special_tokens = json.loads(files["tokenizer_config.json"])[
        "split_special_tokens"
    ]
    texts = [*PROBES, "<|end|>", "Ā<|end|>Ā", "\u2028\ufeff"]
    ours = prepared_tokenizer(dataset).encode(each.encode() for each in texts)
    for each, found in zip(texts, ours, strict=True):
        assert written.encode(each).ids == found[:-1].tolist()
        assert written.decode(found[:-1].tolist(), skip_special_tokens=False) == each
    assert written.token_to_id("<|end|>") == 0


@pytest.mark.slow
def test_transformers_loads_the_tokenizer_beside_the_model(text, tmp_path):
    import transformers

    source = DataSource(paths=(str(text),), tokenizer="bpe:300", eval_tokens=256)
    dataset = prepare(source, tmp_path)
    spec = replace(
        make_spec({"vocab_size": dataset.vocab_size, **LLAMA}, {}),
        data_fingerprint=dataset.fingerprint,
    )
    model = export_huggingface(make_weights(spec), dataset, tmp_path / "model", dtype="bfloat16")
    assert model.has_tokenizer
    assert not model.warnings
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.eos_token_id == tokenizer.eos_token_id == dataset.end_token
    ours = prepared_tokenizer(dataset).encode(each.encode() for each in PROBES)
    for each, found in zip(PROBES, ours, strict=True):
        assert tokenizer(each).input_ids == found[:-1].tolist()
