"""The identity of a text: a hash of its distinct documents, the same for every tokenizer.

The fingerprint of a dataset is of its tokens. Losses in bits per byte compare over tokenizers if
the text is the same.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from scalelab.corpus.mixed import SOURCES
from scalelab.corpus.shards import FINGERPRINT_LENGTH, MANIFEST_NAME
from scalelab.corpus.spool import Spool


def text_fingerprint(spool: Spool) -> str:
    """Return the hash of a text, from the hashes of its documents in their order."""
    hashes = np.stack([spool.high, spool.low], axis=1).astype("<u8")
    return hashlib.sha256(hashes.tobytes()).hexdigest()[:FINGERPRINT_LENGTH]


def text_of(data: Path, fingerprint: str) -> str | None:
    """Return the hash of the text of prepared data; None if it is not known.

    It is not known for token files, folders of earlier versions, and data that is not there.

    Parameters
    ----------
    data : Path
        The folder of all prepared data, ``<results>/data``.
    fingerprint : str
        Name of the dataset's folder: prepared text or a mixture.
    """
    try:
        content: Any = json.loads((data / fingerprint / MANIFEST_NAME).read_text(encoding="utf-8"))
        if SOURCES not in content:
            found = content.get("text_fingerprint")
            return None if found is None else str(found)
        named = {name: text_of(data, str(each)) for name, each in content[SOURCES].items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    if None in named.values():
        return None
    return hashlib.sha256(json.dumps(sorted(named.items())).encode()).hexdigest()[
        :FINGERPRINT_LENGTH
    ]
