"""Figures about speed. Every claim is a ratio to something measured in the same run: these machines are shared and
noisy.
"""
