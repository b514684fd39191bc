"""Who may ask, for how much, and in which order: decisions alone. Time comes in as an argument, refusals go out as
values; nothing here waits, opens a socket or raises what a caller sees.
"""
