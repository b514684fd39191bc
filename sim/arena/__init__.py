"""The arena: one seeded truth, many policies, each deciding request by request on a virtual clock in a closed loop."""
