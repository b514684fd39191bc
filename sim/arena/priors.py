"""How long incidents last and how they cluster, as fitted to a public status page.

The rule of this file: numbers with their source, nothing else. Source: 700 incidents of one large API provider since
2023, without maintenance (github.com/mrshu/github-statuses, commit becbfc21, MIT). Their durations are log-normal to
the eye: median 76 min, p90 332 min (2 LLM APIs' status pages: medians 75 and 46 min, p90 250-330 min).
"""

HOLD_MEDIAN_S = 4560.0
# Standard deviation of the log duration.
HOLD_SIGMA = 1.13
# 22.5 % of the gaps between starts are below 6 h, where a Poisson process of the same rate has 12.3 %: the excess.
AFTERSHOCK_CHANCE = 0.115
# Median of the gaps below 6 h.
AFTERSHOCK_GAP_S = 8280.0
