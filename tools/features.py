"""Write docs/features.md from the registry of features, or check that the committed page is what would be written.

`python -m tools.features` writes, `python -m tools.features --check` compares and exits with 1 when the page is stale.
"""

import sys
from pathlib import Path

from scoring.features import FEATURE_SET, FEATURES, Group

PAGE = Path(__file__).resolve().parent.parent / "docs" / "features.md"

_HEAD = """\
# What a forecast looks at

Written by `python -m tools.features` from the registry in `scoring/features.py`; `make lint` fails when it is stale.
Feature set `{feature_set}`, {count} features, all computed from one endpoint's window at one moment, all finite. Every
figure is relative to the endpoint itself: its *baseline* is its last 30 minutes without the newest five. *Rises* marks
a feature of which more may never lower the risk (a monotonic constraint of the training).
"""


def page() -> str:
    """Return the page."""
    parts = [_HEAD.format(feature_set=FEATURE_SET, count=len(FEATURES))]
    for group in Group:
        rows = [
            f"| `{f.name}` | {f.unit} | {f'{f.window} s' if f.window else 'now'} | {'rises' if f.direction else ''} "
            f"| {f.meaning} |"
            for f in FEATURES
            if f.group is group
        ]
        head = f"## {group.value.capitalize()}\n\n| feature | unit | span | risk | meaning |\n|---|---|---|---|---|"
        parts.append("\n".join([head, *rows]) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or compare it."""
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            print(f"{PAGE.name} is stale: run python -m tools.features")
            return 1
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
