"""Running totals as they stood at the end of each of the last periods: the sum over any span is one subtraction."""

from array import array


class Ring:
    """`length` rows of `width` totals each, by the number of their period."""

    __slots__ = ("_length", "_rows", "_width", "newest")

    def __init__(self, length: int, width: int) -> None:
        self._length = length
        self._width = width
        self._rows = array("d", bytes(8 * width * length))
        self.newest = 0

    def advance(self, period: int, totals: "array[float]") -> None:
        """Close every period before `period` with `totals`."""
        for closed in range(max(self.newest, period - self._length), period):
            start = (closed % self._length) * self._width
            self._rows[start : start + self._width] = totals
        self.newest = period

    def at(self, period: int, totals: "array[float]") -> "array[float]":
        """Return the totals at the end of `period`; the running ones when it has not been closed yet."""
        if period >= self.newest:
            return totals
        start = (max(period, self.newest - self._length) % self._length) * self._width
        return self._rows[start : start + self._width]
