"""`python -m sim.prior`: train the forecaster that ships with the package, on simulated worlds, from a fixed seed.

The rule of this file: worlds are split whole. One part is fitted on, one calibrates and chooses the threshold, one is
only looked at for the figures in the manifest. None of them is an evaluation scenario. Worlds full of trouble teach
what it looks like; probabilities and alarms per day are settled where trouble is as rare as in service.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from scoring.alarms import ThresholdChoice, choose_threshold, endpoint_days, false_alarms
from scoring.artifact import Manifest, checksum, code_version, libraries, save
from scoring.calibration import fit_calibration
from scoring.domain import domain_of
from scoring.features import FEATURE_SET, NAMES
from scoring.forecaster import Forecaster, Weighted
from scoring.labels import HORIZON_S
from scoring.metrics import Skill, skill
from scoring.packing import pack
from scoring.registry import PRIOR
from scoring.training import export, fit_classifier
from sim.judging import Sampled, caught_by_kind, rows_of, sample_world, series_of
from sim.processes import process_pool
from sim.world import Setting

SEED = 20
MAX_FALSE_ALARMS_PER_DAY = 3.0
_TRAIN_TICK_S = 5.0
# Alarms are counted at the pace of serving; coarser ticks would miss the short ones.
_SERVE_TICK_S = 1.0
_PARTS = ("fit", "calibrate", "test")
_PART_STRIDE = 1_000_000


@dataclass(frozen=True, slots=True)
class Size:
    """How many worlds of each setting each part has. The parts are fit, calibrate and test."""

    steady: tuple[int, int, int] = (100, 20, 40)
    cold: tuple[int, int, int] = (200, 40, 80)
    sparse: tuple[int, int, int] = (20, 24, 16)
    shifted: tuple[int, int, int] = (0, 0, 40)

    def settings(self, part: int) -> list[Setting]:
        """Return the setting of each world of a part."""
        counts = ((Setting.STEADY, self.steady), (Setting.COLD, self.cold), (Setting.SPARSE, self.sparse),
                  (Setting.SHIFTED, self.shifted))  # fmt: skip
        return [setting for setting, by_part in counts for _ in range(by_part[part])]


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained prior: its arrays and its manifest."""

    arrays: bytes
    manifest: Manifest


def train_prior(seed: int = SEED, size: Size = Size(), workers: int = 2) -> Trained:
    """Train, calibrate, choose the threshold, evaluate. The same arguments give the same bytes."""
    with process_pool(workers) as pool:
        fit, calibrate, test = (_samples(pool, seed, part, size) for part in range(len(_PARTS)))
    x, y = rows_of(fit)
    x_cal, y_cal = rows_of(calibrate)
    coarse = int(_TRAIN_TICK_S / _SERVE_TICK_S)
    forest = export(fit_classifier(x, y, x_cal[::coarse], y_cal[::coarse], seed))
    as_in_service = only(calibrate, Setting.SPARSE)
    x_rare, y_rare = rows_of(as_in_service)
    calibration = fit_calibration(forest.log_odds(x_rare), y_rare)
    forecaster = Forecaster((Weighted(1.0, forest),), calibration, domain_of(x, y))
    choice = choose_threshold(series_of(as_in_service, forecaster), MAX_FALSE_ALARMS_PER_DAY)
    arrays = pack(forecaster)
    return Trained(arrays, _manifest(forecaster, arrays, choice, test, seed, size, len(x)))


def only(samples: Sequence[Sampled], setting: Setting) -> list[Sampled]:
    """Return the samples of one setting."""
    return [sampled for sampled in samples if sampled.setting is setting]


def _manifest(
    forecaster: Forecaster,
    arrays: bytes,
    choice: ThresholdChoice,
    test: Sequence[Sampled],
    seed: int,
    size: Size,
    rows: int,
) -> Manifest:
    series = series_of(test, forecaster)
    rare = [own for own, sampled in zip(series, test, strict=True) if sampled.setting is Setting.SPARSE]
    alarms = sum(false_alarms(own, choice.threshold) for own in rare)
    days = endpoint_days(rare)
    digest = checksum(arrays)
    return Manifest(
        version=f"prior-{seed}-{digest[:8]}",
        kind="trees",
        code=code_version(),
        trained_at=None,
        seed=seed,
        feature_set=FEATURE_SET,
        features=NAMES,
        horizon_s=HORIZON_S,
        threshold=choice.threshold,
        libraries=libraries(),
        data=(
            f"simulated worlds: {len(size.settings(0))} fitted on ({rows} rows every "
            f"{_TRAIN_TICK_S:g} s); calibration and threshold by {size.sparse[1]} with trouble as rare as in service "
            f"({choice.per_day:.2f} false alarms per endpoint-day in {choice.days:.1f}); figures by "
            f"{len(size.settings(2))} others, skill and false alarms by the {size.sparse[2]} rare ones of them"
        ),
        data_from=None,
        data_until=None,
        skill=_skill(test, forecaster, Setting.SPARSE),
        skill_shifted=_skill(test, forecaster, Setting.SHIFTED),
        false_alarms_per_day=alarms / days if days else None,
        endpoint_days=days,
        incidents=caught_by_kind(test, series, choice.threshold),
        parent=None,
        arrays_sha256=digest,
    )


def _skill(samples: Sequence[Sampled], forecaster: Forecaster, setting: Setting) -> Skill:
    x, y = rows_of(only(samples, setting), forecaster)
    return skill(y, forecaster.risks(x))


def _samples(pool: ProcessPoolExecutor, seed: int, part: int, size: Size) -> list[Sampled]:
    settings = size.settings(part)
    first = (seed * len(_PARTS) + part) * _PART_STRIDE
    tick_s = _TRAIN_TICK_S if part == 0 else _SERVE_TICK_S
    sampled = pool.map(partial(sample_world, tick_s=tick_s), range(first, first + len(settings)), settings)
    return list(chain.from_iterable(sampled))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write the artifact."""
    parser = argparse.ArgumentParser(prog="python -m sim.prior", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=PRIOR, help="directory of the artifact (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    trained = train_prior(options.seed)
    save(options.out, trained.arrays, trained.manifest)
    sys.stdout.write(f"{summary(trained)}\n")
    return 0


def summary(trained: Trained) -> str:
    """Tell the figures in a few lines."""
    manifest = trained.manifest
    figures = manifest.skill
    ranking = f"PR-AUC {figures.pr_auc or 0:.3f}, Brier {figures.brier or 0:.4f}, skill {figures.brier_skill or 0:.3f}"
    lines = [
        f"{manifest.version}: {len(trained.arrays)} bytes, threshold {manifest.threshold:g}",
        f"rows {figures.rows}, base rate {figures.base_rate:.4f}, {ranking}",
        f"shifted worlds: skill {(manifest.skill_shifted or figures).brier_skill or 0:.3f}",
        f"false alarms per endpoint-day {manifest.false_alarms_per_day or 0:.2f} in {manifest.endpoint_days:.1f} days",
    ]
    for kind, found in manifest.incidents.items():
        recall, lead, possible = found.early_recall or 0, found.median_lead_s or 0, found.median_possible_s or 0
        lines.append(f"  {kind:<18} {found.incidents:>4}: early {recall:.2f}, lead {lead:.0f} s of {possible:.0f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
