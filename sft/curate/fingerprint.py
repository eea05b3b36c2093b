"""What the results of a curation depend on besides its recipe and its rows."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("numpy", "py3langid", "tokenizers", "transformers")


def code_fingerprint() -> str:
    """sha256 over the files that the results depend on, and the versions of the libraries."""
    root = Path(__file__).parents[1]
    out = hashlib.sha256()
    folders = (root / "curate", root / "text", root / "data")
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    for path in sorted(files):
        out.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    for library in _LIBRARIES:
        out.update(f"{library} {metadata.version(library)}\n".encode())
    return out.hexdigest()
