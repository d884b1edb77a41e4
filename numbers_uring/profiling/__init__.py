"""Flame graphs of a running server."""
