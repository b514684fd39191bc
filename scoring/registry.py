"""Where forecasters live: one directory per version under `<data>/models`, and the pointer file `champion`.

The rule of this file: the pointer is replaced atomically and only ever names a complete directory, so whoever reads it
at any moment finds a whole model or, without a pointer, the prior that ships with the package.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from scoring.artifact import ArtifactError, Manifest, Model, load, load_manifest, save

PRIOR = Path(__file__).parent / "prior"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Champion:
    """The model to serve. `problem` says why it is not the one the pointer names; empty when all is well. `model` is
    None when not even the prior can be loaded.
    """

    model: Model | None
    problem: str


class Registry:
    """The models of one data directory. Nothing is created before something is registered."""

    def __init__(self, data_dir: Path, prior: Path = PRIOR) -> None:
        self._models = data_dir / "models"
        self._pointer = self._models / "champion"
        self._prior = prior

    def pointer_version(self) -> str | None:
        """Return the version the pointer names, or None without a pointer. Raises ArtifactError for a damaged one."""
        try:
            text = self._pointer.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(self._pointer, f"cannot be read: {error}") from error
        if not _VERSION.fullmatch(text):
            raise ArtifactError(self._pointer, f"expected the version of a model, got {text[:80]!r}")
        return text

    def stamp(self) -> int:
        """Return a number that changes when the pointer does; 0 without a pointer."""
        try:
            status = self._pointer.stat()
        except OSError:
            return 0
        return hash((status.st_mtime_ns, status.st_ino, status.st_size)) or 1

    def champion(self) -> Champion:
        """Load the model to serve: the pointer's, else the prior, else none."""
        problem = ""
        try:
            version = self.pointer_version()
            if version is not None:
                return Champion(load(self._models / version), "")
        except ArtifactError as error:
            problem = str(error)
        try:
            return Champion(load(self._prior), problem)
        except ArtifactError as error:
            return Champion(None, f"{problem}; {error}" if problem else str(error))

    def register(self, arrays: bytes, manifest: Manifest) -> Path:
        """Store a model without serving it, and return its directory.

        A version that was left incomplete is written anew. Raises OSError, or ArtifactError when the stored model
        cannot be loaded again.
        """
        directory = self._models / _checked(self._models, manifest.version)
        save(directory, arrays, manifest)
        load(directory)
        return directory

    def promote(self, version: str) -> None:
        """Let `version` be served from now on.

        Raises ArtifactError when it cannot be loaded and OSError when the disk refuses; the pointer stays then.
        """
        load(self._models / _checked(self._models, version))
        temporary = self._pointer.with_suffix(f".{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(f"{version}\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._pointer)
        finally:
            temporary.unlink(missing_ok=True)
        handle = os.open(self._models, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def versions(self) -> list[Manifest]:
        """Return the manifests of all registered models that can be read, by version."""
        if not self._models.is_dir():
            return []
        found = []
        for directory in sorted(path for path in self._models.iterdir() if path.is_dir()):
            try:
                found.append(load_manifest(directory))
            except ArtifactError:
                continue
        return found


def _checked(models: Path, version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise ArtifactError(models, f"version {version!r}: expected letters, digits, '.', '_' or '-'")
    return version
