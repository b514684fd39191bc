"""Simulated providers and worlds: real servers with scripted faults, and a virtual-clock world that shares their faults."""
