"""What can be wrong with the state store.

StoreError
├── StoreUnusableError   somebody has to mend it: locked, damaged, not permitted, of another version
└── SealError            a sealed value does not open
"""


class StoreError(Exception):
    """The disk refuses, now; it may take the same job later."""


class StoreUnusableError(StoreError, OSError):
    """The file cannot be used until somebody mends it."""


class SealError(StoreError):
    """A sealed value does not open: its key is not configured, or it is not what was written there."""
