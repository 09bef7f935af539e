"""Write the tokens of a corpus: split its documents, tokenize them, and describe the folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from scalelab.corpus.held_out import (
    DOCUMENTS,
    STRETCH,
    Split,
    TooFewError,
    make_tokenizer,
    split_documents,
    split_stretch,
)
from scalelab.corpus.pieces import encode_pieces
from scalelab.corpus.shards import Manifest, Shard, ShardWriter, fingerprints
from scalelab.corpus.source import DataSource
from scalelab.corpus.spool import Progress, Spool
from scalelab.corpus.text_identity import text_fingerprint
from scalelab.corpus.tokenizer import Tokenizer
from scalelab.corpus.tokenizer_files import FileTokenizer
from scalelab.corpus.tokenizer_names import short_name
from scalelab.corpus.unfinished import Unfinished, Written
from scalelab.errors import DataError
from scalelab.units import plural

REPORT_BYTES = 1 << 20


def write_text_dataset(
    source: DataSource,
    spool: Spool,
    work: Unfinished,
    cache: Path,
    progress: Progress,
    made: Tokenizer | None,
) -> Manifest:
    """Write the shards of a corpus to ``whole`` in its folder, split in the first way that works.

    ``made`` is the tokenizer if it was trained on other text as well.
    """
    folder = work.folder / "whole"
    ways = ((DOCUMENTS, split_documents), (STRETCH, split_stretch))
    problem = ""
    written = work.written()
    for kind, split in ways if len(spool) > 1 else ways[1:]:
        if written is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        elif written.kind != kind:
            continue  # this way did not work before
        try:
            tokenizer = made or make_tokenizer(source, spool, kind, cache, progress)
            parts = split(source, spool, tokenizer, work.folder)
            train = _write_train(spool, parts, tokenizer, work, written, progress)
            n_train_tokens = sum(shard.n_tokens for shard in train)
            if n_train_tokens >= source.eval_tokens:
                return write_rest(source, spool, parts, tokenizer, train, folder)
            problem = f"only {plural(n_train_tokens, 'token')} would be left for training"
        except TooFewError as error:
            problem = str(error)
        written = None
        work.forget_written()
    raise _too_small(source, spool, problem)


def write_rest(
    source: DataSource,
    spool: Spool,
    parts: Split,
    tokenizer: Tokenizer,
    train: tuple[Shard, ...],
    folder: Path,
) -> Manifest:
    """Write the evaluation tokens and the tokenizer of a corpus, and return its manifest."""
    writer = ShardWriter(folder, "eval", tokenizer.dtype)
    writer.append(parts.eval_tokens)
    evaluation = writer.finish()
    tokenizer_sha256 = None
    if tokenizer.file is not None:
        content = tokenizer.file.read_bytes()
        tokenizer_sha256 = hashlib.sha256(content).hexdigest()
        (folder / f"tokenizer{tokenizer.file.suffix.lower()}").write_bytes(content)
    fingerprint, eval_fingerprint = fingerprints(
        short_name(source.tokenizer), tokenizer_sha256, train, evaluation
    )
    return Manifest(
        fingerprint=fingerprint,
        eval_fingerprint=eval_fingerprint,
        tokenizer=short_name(source.tokenizer),
        tokenizer_sha256=tokenizer_sha256,
        vocab_size=tokenizer.vocab_size,
        dtype=tokenizer.dtype.name,
        n_documents=len(spool),
        n_train_documents=len(parts.train),
        n_held_out_documents=parts.n_held_out,
        n_duplicates=spool.n_duplicates,
        n_empty=spool.n_empty,
        n_skipped_files=spool.n_skipped_files,
        n_rejected=spool.n_rejected,
        n_markup_files=spool.n_markup_files,
        split=parts.kind,
        held_out_share=parts.share,
        eval_window_tokens=parts.window_tokens,
        bytes_per_token=_bytes_per_token(tokenizer, parts),
        end_token=tokenizer.end_token,
        tokenizer_pattern=source.tokenizer_pattern,
        special_tokens=source.special_tokens,
        text_fingerprint=text_fingerprint(spool),
        source=source.describe(),
        train=train,
        evaluation=evaluation,
    )


def _bytes_per_token(tokenizer: Tokenizer, parts: Split) -> float:
    """Return the mean bytes of text per evaluation token; an end of a document counts as one.

    A tokenizer from a file may change the text before it cuts it, so that the bytes of its tokens
    are not those of the text; then they are scaled to the held-out text.
    """
    lengths = tokenizer.token_bytes()
    found = float(lengths[parts.eval_tokens].mean())
    if isinstance(tokenizer, FileTokenizer):
        n_bytes = sum(int(lengths[tokens].sum()) for tokens in parts.held_out)
        found *= (parts.n_held_out_bytes + parts.n_held_out) / n_bytes
    return found


def _write_train(
    spool: Spool,
    parts: Split,
    tokenizer: Tokenizer,
    work: Unfinished,
    written: Written | None,
    progress: Progress,
) -> tuple[Shard, ...]:
    """Write the training tokens, from where a stopped preparation had written them."""
    folder = work.folder / "whole"
    try:
        after = None if written is None else written.mark
        writer = ShardWriter(folder, "train", tokenizer.dtype, after=after)
    except OSError:  # damaged since: from the start
        written = None
        writer = ShardWriter(folder, "train", tokenizer.dtype)
    n_documents = 0 if written is None else written.document
    spans = parts.train[n_documents:].copy()
    if written is not None and written.n_bytes:
        spans[0, 0] += written.n_bytes
    total = int((parts.train[:, 1] - parts.train[:, 0]).sum())
    done = reported = total - int((spans[:, 1] - spans[:, 0]).sum())
    if done:
        progress("tokenizing", done, total)
    at = int(spans[0, 0]) if len(spans) else 0
    for tokens, end, is_last in encode_pieces(tokenizer, spool.text, spans):
        writer.append(tokens)
        done += end - at
        at = end
        if is_last:
            n_documents += 1
            at = int(parts.train[n_documents, 0]) if n_documents < len(parts.train) else 0
        if done - reported >= REPORT_BYTES:
            progress("tokenizing", done, total)
            reported = done
            if work.is_due:
                n_bytes = 0 if is_last else at - int(parts.train[n_documents, 0])
                work.save_written(
                    Written(
                        kind=parts.kind,
                        document=n_documents,
                        n_bytes=n_bytes,
                        mark=writer.mark(),
                    )
                )
    progress("tokenizing", total, total)
    return writer.finish()


def _too_small(source: DataSource, spool: Spool, problem: str) -> DataError:
    # A sixteenth of the tokens if a token has four bytes.
    fewer = max(1, spool.n_bytes // 64)
    return DataError(
        f"{plural(len(spool), 'distinct document')} with {spool.n_bytes:,} bytes for an evaluation "
        f"set of {source.eval_tokens:,} tokens: {problem}",
        "at least as many tokens for training as for the evaluation",
        f"Give more text, or use a smaller evaluation set, for example --eval-tokens {fewer}.",
    )
