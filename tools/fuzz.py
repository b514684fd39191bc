"""Fuzz for a while: `python -m tools.fuzz --seconds 600` runs the fuzzing tests, each round from another seed.

Exit status 1 as soon as a round fails; hypothesis has then printed the smallest example, and remembers it.
"""

import argparse
import subprocess
import sys
import time

_TESTS = (
    "tests/property/test_fuzz_wire.py",
    "tests/property/test_sse_chunking.py",
    "tests/integration/test_fuzz_sockets.py",
)


def main() -> int:
    """Run rounds until the time is over; the one under way is finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    ends = time.monotonic() + parser.parse_args().seconds
    seed = 0
    while time.monotonic() < ends:
        seed += 1
        options = ("-q", "-p", "no:cacheprovider", "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}")
        status = subprocess.run([sys.executable, "-m", "pytest", *options, *_TESTS], check=False).returncode
        if status:
            print(f"round {seed} failed; again: python -m pytest {' '.join(options)} {' '.join(_TESTS)}")
            return status
    print(f"{seed} rounds found nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
