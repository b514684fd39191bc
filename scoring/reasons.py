"""What an explanation of a forecast is made of."""

import msgspec


class Figure(msgspec.Struct, frozen=True, array_like=True):
    """One feature of an explanation: its value now, and what is normal by the model's training data."""

    name: str
    value: float
    normal: float


class Contribution(msgspec.Struct, frozen=True, array_like=True):
    """What one group of features adds to the log-odds, with its features that lie furthest from normal."""

    group: str
    log_odds: float
    figures: tuple[Figure, ...]
