"""The edge: all I/O, clocks and randomness. It may import every other package; nothing imports it."""
