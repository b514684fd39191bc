"""Talking to providers: one file per wire protocol, all of them over one transport seam.

The rule of this package: an adapter turns a `Call` into exactly one upstream request and its end into exactly one
`Reply`, run of `Chunk`s, or `Failure`. It never retries; that is decided above it.
"""
