"""The scorecard: policies × scenarios × seeds in the arena, measured by one set of definitions."""
