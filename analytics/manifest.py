"""The manifest: which compacted parts count, and up to which segment they cover each writer's stream.

Rule of this file: the manifest is replaced whole and atomically, and it alone decides. A part it does not list does
not exist; a segment whose number is not above its mark is already inside a part. What it lists as retired is still on
the disk for readers that began earlier, and goes after a grace period.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from analytics.errors import ForeignFileError
from analytics.files import MANIFEST, AtomicFile


@dataclass(frozen=True, slots=True)
class Part:
    """A compacted file; `path` is relative to the root, times are unix seconds."""

    path: str
    rows: int
    min_time: float
    max_time: float


@dataclass(frozen=True, slots=True)
class Mark:
    """High-water mark of one writer's stream: segments up to `seq` are covered; `at` is when this was last of use."""

    seq: int
    at: float


@dataclass(frozen=True, slots=True)
class Retired:
    """A file no new reader uses any more, since `at` (unix seconds)."""

    path: str
    at: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """`parts` by stream; `marks` by "<writer>/<stream>"; `retired` files still on the disk."""

    version: int = 1
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    marks: Mapping[str, Mark] = field(default_factory=dict)
    retired: tuple[Retired, ...] = ()

    def covers(self, writer: str, stream: str, seq: int) -> bool:
        """Whether that segment is inside a part already."""
        mark = self.marks.get(f"{writer}/{stream}")
        return mark is not None and seq <= mark.seq


def read_manifest(root: Path) -> Manifest:
    """The manifest of a history, empty if there is none yet. Raises `ForeignFileError` when it cannot be understood."""
    path = root / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return Manifest()
    except msgspec.DecodeError as error:
        raise ForeignFileError(path, f"expected a history manifest: {error}") from error
    if manifest.version != 1:
        raise ForeignFileError(path, f"expected manifest version 1, found {manifest.version}")
    return manifest


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Replace the manifest atomically and durably. Raises `OSError`."""
    with AtomicFile(root / MANIFEST) as temporary:
        temporary.write_bytes(msgspec.json.encode(manifest))
