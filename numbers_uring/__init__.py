"""numbers-uring: a TCP number server for Linux."""

__version__ = "1.0.0"
