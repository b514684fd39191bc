"""Where forecasters live: one directory per version under `<data>/models`, and the file of their roles.

The rule of this file: a role only ever goes to a model that was loaded whole a moment before, so whoever serves the
roles finds a working model, or the prior that ships with the package, or is told to leave the reflex alone.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from scoring.artifact import ArtifactError, Manifest, Model, load, load_manifest, save
from scoring.roles import VERSION, Roles, RolesFile, promoted, rolled_back, watched

PRIOR = Path(__file__).parent / "prior"


class Role(StrEnum):
    """What a registered model is for. A CANDIDATE was never let near live traffic."""

    CHAMPION = "champion"
    SHADOW = "shadow"
    RETIRED = "retired"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True)
class Champion:
    """The model to serve. `problem` says why it is not the one the roles name; empty when all is well. `model` is None
    when not even the prior can be loaded, and when forecasting was stopped (`floored`).
    """

    model: Model | None
    problem: str
    floored: bool = False


class Registry:
    """The models of one data directory. Nothing is created before something is registered."""

    def __init__(self, data_dir: Path, prior: Path = PRIOR) -> None:
        self._models = data_dir / "models"
        self._file = RolesFile(self._models)
        self._prior = prior

    def roles(self) -> Roles:
        """Return who has which role. Raises ArtifactError for a damaged file."""
        return self._file.read()

    def stamp(self) -> int:
        """Return a number that changes when the roles do; 0 while there are none."""
        return self._file.stamp()

    def champion(self) -> Champion:
        """Load the model to serve: the champion, else the prior, else none."""
        problem = ""
        try:
            roles = self.roles()
            if roles.floored:
                return Champion(None, "", floored=True)
            if roles.champion is not None:
                return Champion(load(self._models / roles.champion), "")
        except ArtifactError as error:
            problem = str(error)
        try:
            return Champion(load(self._prior), problem)
        except ArtifactError as error:
            return Champion(None, f"{problem}; {error}" if problem else str(error))

    def prior(self) -> Model:
        """Load the model that ships with the package. Raises ArtifactError."""
        return load(self._prior)

    def shadow(self) -> Model | None:
        """Load the model that is watched, None without one. Raises ArtifactError."""
        version = self.roles().shadow
        return None if version is None else load(self._models / version)

    def load(self, version: str) -> Model:
        """Load a registered model, or the prior by its version. Raises ArtifactError."""
        return load(self._prior if self._is_prior(version) else self._models / _checked(self._models, version))

    def _is_prior(self, version: str) -> bool:
        try:
            return load_manifest(self._prior).version == version
        except ArtifactError:
            return False

    def _is_usable(self, version: str | None) -> bool:
        try:
            load(self._prior if version is None else self._models / version)
        except ArtifactError:
            return False
        return True

    def register(self, arrays: bytes, manifest: Manifest) -> Path:
        """Store a model without a role, and return its directory.

        A version that was left incomplete is written anew. Raises OSError, or ArtifactError when the stored model
        cannot be loaded again.
        """
        directory = self._models / _checked(self._models, manifest.version)
        save(directory, arrays, manifest)
        load(directory)
        return directory

    def promote(self, version: str) -> None:
        """Let `version` (the prior's included) be served from now on.

        Raises ArtifactError when it cannot be loaded and OSError when the disk refuses; the roles stay then.
        """
        self.load(version)
        with self._file.locked():
            self._file.write(promoted(self.roles(), None if self._is_prior(version) else version))

    def watch(self, version: str | None, now: float) -> None:
        """Let `version` be watched beside the champion from `now` on (unix seconds); None watches nobody. Raises as
        `promote`.
        """
        if version is not None:
            self.load(version)
        with self._file.locked():
            self._file.write(watched(self.roles(), version, now))

    def roll_back(self, version: str) -> Roles | None:
        """Take `version` out of service: the last one that served before and can be loaded takes its place, else the
        prior, else nobody. Return the roles from now on.

        None when `version` does not serve any more: somebody else was faster. Raises ArtifactError for damaged roles
        and OSError when the disk refuses; nothing has changed then.
        """
        with self._file.locked():
            roles = self.roles()
            serves = self._is_prior(version) if roles.champion is None else version == roles.champion
            if roles.floored or not serves:
                return None
            after = rolled_back(roles, self._is_usable)
            self._file.write(after)
            return after

    def versions(self) -> list[tuple[Manifest, Role]]:
        """Return all registered models that can be read, by version. Raises ArtifactError for damaged roles."""
        roles = self.roles()
        if not self._models.is_dir():
            return []
        found = []
        for directory in sorted(path for path in self._models.iterdir() if path.is_dir()):
            try:
                manifest = load_manifest(directory)
            except ArtifactError:
                continue
            found.append((manifest, _role(manifest.version, roles)))
        return found


def _role(version: str, roles: Roles) -> Role:
    if version == roles.champion:
        return Role.CHAMPION
    if version == roles.shadow:
        return Role.SHADOW
    return Role.RETIRED if version in roles.retired or version in roles.previous else Role.CANDIDATE


def _checked(models: Path, version: str) -> str:
    if not VERSION.fullmatch(version):
        raise ArtifactError(models, f"version {version!r}: expected letters, digits, '.', '_' or '-'")
    return version
