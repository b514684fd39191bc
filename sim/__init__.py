"""Simulated providers and worlds: real servers with scripted faults, and a virtual-clock world with the same faults."""
