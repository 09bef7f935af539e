"""Tokenizers that others made: the samples, the bytes of their tokens, and damaged files."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.corpus.dataset import prepare
from scalelab.corpus.source import DataSource
from scalelab.corpus.tokenizer_files import PATTERNS, FileTokenizer, open_tokenizer
from scalelab.corpus.tokenizer_names import find_tokenizer, short_name, tokenizer_name
from scalelab.errors import DataError, UsageError

SAMPLES = Path(__file__).parent / "samples/tokenizers"
FILES = {
    # File: its vocabulary with the end of a document, and that token.
    "tokenizer.json": (512, 0),
    "sp_bpe512.model": (512, 2),
    "tiny.tiktoken": (267, 266),
}
TEXTS = ("hello  world", "naïve 你好 \u0001 🙂", "a <|endoftext|> b </s>", "", "\n\t  x")


def opened(name: str, *, end_token: int | None = None, special: bool = False) -> FileTokenizer:
    pattern = "gpt2" if name.endswith("tiktoken") else None
    return open_tokenizer(
        SAMPLES / name, pattern=pattern, end_token=end_token, is_special_parsed=special
    )


def decode(tokenizer: FileTokenizer, tokens: np.ndarray) -> str:
    """Return the text of tokens by the library of their format."""
    ids = [int(token) for token in tokens]
    library = getattr(tokenizer, "_tokenizer", None)
    if library is not None:
        return library.decode(ids, skip_special_tokens=False)
    library = getattr(tokenizer, "_encoding", None) or tokenizer._model
    return library.decode(ids)


def kept(name: str, text: str) -> str:
    """Return what a sample keeps of a text: the sentencepiece model normalizes it first."""
    return " ".join(text.replace("\u0001", "").split()) if name.endswith(".model") else text


@pytest.mark.parametrize("name", FILES)
def test_samples_encode_any_text_without_loss(name: str) -> None:
    tokenizer = opened(name)
    assert (tokenizer.vocab_size, tokenizer.end_token) == FILES[name]
    for text, tokens in zip(TEXTS, tokenizer.encode(t.encode() for t in TEXTS), strict=True):
        assert tokens[-1] == tokenizer.end_token
        assert tokenizer.end_token not in tokens[:-1]
        assert int(tokens.max()) < tokenizer.vocab_size
        assert decode(tokenizer, tokens[:-1]) == kept(name, text)


@pytest.mark.parametrize("name", FILES)
def test_the_bytes_of_tokens_are_those_of_the_text(name: str) -> None:
    tokenizer = opened(name)
    lengths = tokenizer.token_bytes()
    assert lengths[tokenizer.end_token] == 1
    for text, tokens in zip(TEXTS, tokenizer.encode(t.encode() for t in TEXTS), strict=True):
        # sentencepiece puts a space before a text.
        n_bytes = len(kept(name, text).encode()) + (name.endswith(".model") and bool(text))
        assert lengths[tokens].sum() == n_bytes + 1


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_byte_level_tokenizers_keep_every_text(text: str) -> None:
    for name in ("tokenizer.json", "tiny.tiktoken"):
        tokenizer = opened(name)
        (tokens,) = tokenizer.encode([text.encode()])
        assert decode(tokenizer, tokens[:-1]) == text
        assert tokenizer.token_bytes()[tokens].sum() == len(text.encode()) + 1


def test_special_tokens_in_text_are_text_unless_asked() -> None:
    text = [b"a<|endoftext|>b"]
    for name, end in (("tokenizer.json", 0), ("tiny.tiktoken", 266)):
        (plain,) = opened(name).encode(text)
        (special,) = opened(name, special=True).encode(text)
        assert np.count_nonzero(plain == end) == 1
        assert np.count_nonzero(special == end) == 2
    with pytest.raises(UsageError, match=r"--special-tokens with sp_bpe512.model"):
        opened("sp_bpe512.model", special=True)


def test_settings_for_models_do_not_change_a_corpus(tmp_path: Path) -> None:
    content = json.loads((SAMPLES / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }  # fmt: skip
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    changed = open_tokenizer(file, pattern=None, end_token=None, is_special_parsed=False)
    texts = [b"a text that is longer than four tokens"]
    (expected,) = opened("tokenizer.json").encode(texts)
    (found,) = changed.encode(texts)
    np.testing.assert_array_equal(found, expected)


def test_the_end_of_documents_is_declared_beside_the_file_or_given(tmp_path: Path) -> None:
    content = json.loads((SAMPLES / "tokenizer.json").read_text())
    content["added_tokens"].append(
        {"id": 512, "content": "<stop>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
    )  # fmt: skip
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))

    def end(given: int | None = None) -> tuple[int, int]:
        found = open_tokenizer(file, pattern=None, end_token=given, is_special_parsed=False)
        return found.end_token, found.vocab_size

    assert end() == (0, 513)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<stop>"}}')
    assert end() == (512, 513)
    assert end(7) == (7, 513)
    assert end(513) == (513, 514)
    # GPT-4's rank file has 100,256 ranks, and ends documents with token 100,257.
    assert opened("tiny.tiktoken", end_token=300).vocab_size == 301
    with pytest.raises(UsageError, match="--end-token 9000000"):
        end(9_000_000)


def test_patterns_are_those_of_tiktoken() -> None:
    import inspect

    tiktoken_ext = pytest.importorskip("tiktoken_ext.openai_public")
    source = inspect.getsource(tiktoken_ext)
    assert PATTERNS["gpt2"] in source
    assert PATTERNS["cl100k"] in source
    start = source.index("pat_str = ", source.index("def o200k_base"))
    scope: dict[str, str] = {}
    exec(source[start : source.index("return", start)].replace("\n    ", "\n"), scope)
    assert PATTERNS["o200k"] == scope["pat_str"]


def test_names_read_like_every_quantity() -> None:
    assert tokenizer_name("bpe:32K") == tokenizer_name("bpe:32000") == "bpe:32000"
    assert DataSource(tokenizer="bpe:4.096K") == DataSource(tokenizer="bpe:4096")
    for wrong in ("bpe:0.5", "bpe:2M", "bpe:K", "hf:", "gpt2", "hf:a/b/c", ""):
        with pytest.raises(UsageError, match="bpe:SIZE") as caught:
            tokenizer_name(wrong)
        assert "--tokenizer bpe:4096" in caught.value.do


def test_the_hub_is_the_local_cache_and_the_revision_main_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="hf:lab/model, which is not in") as caught:
        find_tokenizer("hf:lab/model")
    assert "hf download lab/model" in caught.value.do
    model = tmp_path / "models--lab--model"
    for revision in ("a1", "b2"):
        (model / "snapshots" / revision).mkdir(parents=True)
        (model / "snapshots" / revision / "tokenizer.json").write_text("{}")
    assert find_tokenizer("hf:lab/model") == model / "snapshots/a1/tokenizer.json"
    (model / "refs").mkdir()
    (model / "refs/main").write_text("b2\n")
    assert find_tokenizer("hf:lab/model") == model / "snapshots/b2/tokenizer.json"
    # A local folder is a model, too; runs have its name without the folders above it.
    snapshot = model / "snapshots/a1"
    assert find_tokenizer(f"hf:{snapshot}") == snapshot / "tokenizer.json"
    monkeypatch.chdir(model / "snapshots")
    assert find_tokenizer(tokenizer_name("hf:./a1")) == Path("a1/tokenizer.json")
    assert [short_name(name) for name in (f"hf:{snapshot}", "hf:lab/model", "a/b.json")] == [
        "hf:a1", "hf:lab/model", "b.json"
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"no tokenizer.json or tokenizer.model in"):
        find_tokenizer(f"hf:{model}")


def ranks(lines: int = 256, **changes: str) -> str:
    found = {
        f"line{byte}": f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(lines)
    }
    return "\n".join({**found, **changes}.values())


DAMAGED = {
    "empty.json": ("", "no JSON"),
    "list.json": ("[]", "no model of the tokenizers library"),
    "kind.json": ('{"model": {"type": "Magic"}}', "tokenizer .*kind.json: "),
    "deep.json": ("[" * 100_000, "no JSON"),
    "bytes.model": ("\x08\x01 no protobuf", "tokenizer .*bytes.model: "),
    "empty.model": ("", "tokenizer .*empty.model: "),
    "empty.tiktoken": ("", "no token for byte 0"),
    "few.tiktoken": (ranks(255), "no token for byte 255"),
    "word.tiktoken": (ranks(line7="Bw=="), "line 8, which is not TOKEN RANK"),
    "base.tiktoken": (ranks(line7="!! 7"), "line 8, which is not TOKEN RANK"),
    "twice.tiktoken": (ranks(more="AA== 256"), "line 257"),
    "equal.tiktoken": (ranks(more="AAA= 3"), "two tokens with one rank"),
    "claim.tiktoken": (ranks(more="AAA= 99999999999"), "line 257"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    content, problem = DAMAGED[name]
    file = tmp_path / name
    file.write_text(content)
    pattern = "gpt2" if name.endswith("tiktoken") else None
    with pytest.raises(DataError, match=problem) as caught:
        open_tokenizer(file, pattern=pattern, end_token=None, is_special_parsed=False)
    assert caught.value.do


def test_a_rank_file_refuses_a_million_blanks_before_its_library_fails() -> None:
    tokenizer = open_tokenizer(
        SAMPLES / "tiny.tiktoken", pattern="gpt2", end_token=None, is_special_parsed=False
    )
    with pytest.raises(DataError, match="100,000 blanks"):
        next(tokenizer.encode([b"x" + b" " * 1_100_000 + b"x"]))


def test_a_rank_file_needs_its_pattern_and_no_other_file_takes_one() -> None:
    with pytest.raises(UsageError, match=r"tiny.tiktoken without --tokenizer-pattern") as caught:
        open_tokenizer(
            SAMPLES / "tiny.tiktoken", pattern=None, end_token=None, is_special_parsed=False
        )
    assert "--tokenizer-pattern cl100k" in caught.value.do
    with pytest.raises(UsageError, match=r"--tokenizer-pattern with tokenizer.json"):
        open_tokenizer(
            SAMPLES / "tokenizer.json", pattern="gpt2", end_token=None, is_special_parsed=False
        )
    with pytest.raises(DataError, match="no regular expression"):
        open_tokenizer(
            SAMPLES / "tiny.tiktoken", pattern="(", end_token=None, is_special_parsed=False
        )
    with pytest.raises(UsageError, match="--tokenizer-pattern with --tokenizer bytes"):
        DataSource(tokenizer_pattern="gpt2")


@pytest.mark.parametrize("name", ["sp_bpe512.model", "tiny.tiktoken"])
def test_a_missing_library_is_named_with_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("sentencepiece", "tiktoken"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match="which is not installed") as caught:
        opened(name)
    assert "pip install 'scalelab[tokenizers]'" in caught.value.do


@pytest.mark.parametrize("name", FILES)
def test_text_prepared_with_a_sample_has_its_bytes_per_token(
    name: str,
    tmp_path: Path,
    make_documents: Callable[..., list[str]],
    write_files: Callable[[Path, list[str]], Path],
) -> None:
    texts = make_documents(60)
    folder = write_files(tmp_path / "text", texts)
    pattern = "gpt2" if name.endswith("tiktoken") else None
    source = DataSource(
        paths=(str(folder),),
        tokenizer=str(SAMPLES / name),
        eval_tokens=500,
        tokenizer_pattern=pattern,
    )
    dataset = prepare(source, tmp_path / "r")
    manifest = dataset.manifest
    assert (dataset.tokenizer, dataset.vocab_size, dataset.end_token) == (name, *FILES[name])
    assert manifest.dtype == "uint16"
    assert (dataset.folder / f"tokenizer{Path(name).suffix}").read_bytes() == (
        SAMPLES / name
    ).read_bytes()
    tokenizer = opened(name)
    n_tokens = sum(len(tokens) for tokens in tokenizer.encode(text.encode() for text in texts))
    whole = sum(len(text.encode()) + 1 for text in texts) / n_tokens
    assert manifest.bytes_per_token == pytest.approx(whole, rel=0.1)
    # The same file elsewhere is the same tokenizer.
    copy = tmp_path / "models" / name
    copy.parent.mkdir()
    copy.write_bytes((SAMPLES / name).read_bytes())
    moved = prepare(
        DataSource(
            paths=(str(folder),), tokenizer=str(copy), eval_tokens=500, tokenizer_pattern=pattern
        ),
        tmp_path / "r2",
    )
    assert moved.fingerprint == dataset.fingerprint


def test_token_files_with_their_tokenizer_have_bytes_per_token(tmp_path: Path) -> None:
    tokenizer = opened("tokenizer.json")
    texts = [f"document {i} " + "words and more words " * 9 for i in range(80)]
    tokens = np.concatenate(list(tokenizer.encode(text.encode() for text in texts)))
    file = tmp_path / "train.bin"
    tokens.astype("<u2").tofile(file)
    source = DataSource(
        paths=(str(file),), tokenizer=str(SAMPLES / "tokenizer.json"), eval_tokens=500
    )
    dataset = prepare(source, tmp_path / "r")
    assert (dataset.tokenizer, dataset.vocab_size, dataset.end_token) == ("tokenizer.json", 512, 0)
    whole = sum(len(text) + 1 for text in texts) / len(tokens)
    assert dataset.manifest.bytes_per_token == pytest.approx(whole, rel=0.05)
    with pytest.raises(UsageError, match="bpe:4096 for token files"):
        prepare(DataSource(paths=(str(file),), tokenizer="bpe:4096"), tmp_path / "r")
