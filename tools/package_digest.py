"""Drop the book's cached outputs when the package changed since they were made.

python tools/package_digest.py

The cache of executed chapters is keyed by a chapter's own code; a chapter whose code stayed the same would keep the
outputs of the package as it was.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = Path("_build", ".package-digest")
CACHES = (Path("_build", ".jupyter_cache"), Path("_build", ".doctrees"), Path("_build", "html", ".doctrees"))


def package_digest(root: Path) -> str:
    """SHA-256 over names and bytes of the package's files (code, data, weights) and of requirements.lock."""
    files = [path for path in (root / "rerank_lab").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    digest = hashlib.sha256()
    for path in sorted([*files, root / "requirements.lock"]):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def refresh(root: Path) -> bool:
    """Compare with the digest of the last build; when it differs, drop the caches and keep the new one.

    Returns:
        Whether it differed.
    """
    stamp, digest = root / STAMP, package_digest(root)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return False
    for cache in CACHES:
        shutil.rmtree(root / cache, ignore_errors=True)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(digest, encoding="utf-8")
    return True


if __name__ == "__main__":
    if refresh(ROOT):
        print("The package is new or changed since the last build: every chapter is executed.")
