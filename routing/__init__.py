"""The pure core: observations and time go in, decisions and actions come out.

Nothing below this package opens a socket, reads a clock, draws a random number or awaits. It imports the standard
library alone.
"""
