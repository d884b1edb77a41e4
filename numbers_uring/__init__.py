"""numbers-uring: a TCP number server for Linux."""

__version__ = "0.1.0"
