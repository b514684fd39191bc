"""How far a long command is: a living line on a terminal, a line per tenth in a log.

The rule of this file: words only, on the console it is given; nothing here decides.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

_LINES = 10


@contextmanager
def stage(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Announce a stage; yields what to call with (done, total) as it goes on."""
    if console.is_terminal:
        with console.status(title) as status:
            yield lambda done, total: status.update(f"{title}: {done} of {total}")
        return
    console.print(title, highlight=False)

    def tell(done: int, total: int) -> None:
        if done * _LINES // total > (done - 1) * _LINES // total:
            console.print(f"{title}: {done} of {total}", highlight=False)

    yield tell
