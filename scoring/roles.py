"""Which forecaster serves, which is watched, and which served before: one small file, replaced whole.

The rule of this file: whoever reads it at any moment finds one consistent answer. Changes read, decide and write under
one lock, so that the retraining job, the monitor and an operator cannot undo each other's steps unseen.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from scoring.artifact import ArtifactError

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REMEMBERED = 20


class Roles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Versions by role. None stands for the prior that ships with the package.

    `champion` serves and `shadow` is watched (nobody when None) since `since` (unix seconds). `previous` served before,
    the newest last: the way back. `retired` were taken back or given up, and never return by themselves. `floored`
    means that nothing is forecast and the reflex stands alone.
    """

    champion: str | None = None
    shadow: str | None = None
    since: float | None = None
    floored: bool = False
    previous: tuple[str | None, ...] = ()
    retired: tuple[str, ...] = ()


class RolesFile:
    """The file and its lock, in the directory of the models."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self.path = models / "roles.json"

    def read(self) -> Roles:
        """Return the roles; the default ones without a file. Raises ArtifactError for a damaged one."""
        try:
            roles = msgspec.json.decode(self.path.read_bytes(), type=Roles)
        except FileNotFoundError:
            return Roles()
        except OSError as error:
            raise ArtifactError(self.path, f"cannot be read: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise ArtifactError(self.path, f"expected the roles of models: {error}") from error
        for version in (roles.champion, roles.shadow, *roles.previous, *roles.retired):
            if version is not None and not VERSION.fullmatch(version):
                raise ArtifactError(self.path, f"expected the version of a model, got {version[:80]!r}")
        return roles

    def stamp(self) -> int:
        """Return a number that changes when the file does; 0 without one."""
        try:
            status = self.path.stat()
        except OSError:
            return 0
        return hash((status.st_mtime_ns, status.st_ino, status.st_size)) or 1

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to change roles. Waits for whoever holds it; they all are quick."""
        self._models.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._models / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def write(self, roles: Roles) -> None:
        """Replace the file durably; call it under the lock. Raises OSError; the file is as it was before then."""
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(roles), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        handle = os.open(self._models, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def promoted(roles: Roles, version: str | None) -> Roles:
    """Return the roles in which `version` serves, and who served before is the way back."""
    if version == roles.champion and not roles.floored:
        return roles
    shadow = None if version == roles.shadow else roles.shadow
    before = () if version == roles.champion else (roles.champion,)
    return Roles(
        champion=version,
        shadow=shadow,
        since=roles.since if shadow else None,
        previous=(*roles.previous, *before)[-_REMEMBERED:],
        retired=tuple(name for name in roles.retired if name != version),
    )


def watched(roles: Roles, version: str | None, now: float) -> Roles:
    """Return the roles in which `version` is watched since `now`; who was watched before is retired."""
    given_up = [name for name in (roles.shadow,) if name and name != version]
    return msgspec.structs.replace(
        roles,
        shadow=version,
        since=None if version is None else now,
        retired=(*(name for name in roles.retired if name != version), *given_up)[-_REMEMBERED:],
    )


def rolled_back(roles: Roles, usable: Callable[[str | None], bool]) -> Roles:
    """Return the roles without the present champion: the last one before it that is `usable` serves, else the prior,
    else nobody (`floored`).
    """
    gone = roles.champion
    retired = roles.retired if gone is None else (*roles.retired, gone)[-_REMEMBERED:]
    way_back = [name for name in roles.previous if name != gone]
    while way_back and not usable(way_back[-1]):
        way_back.pop()
    if not way_back and (gone is None or not usable(None)):
        return msgspec.structs.replace(roles, floored=True)
    champion = way_back.pop() if way_back else None
    return msgspec.structs.replace(roles, champion=champion, previous=tuple(way_back), retired=retired)
