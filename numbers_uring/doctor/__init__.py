"""Tries the start steps of `serve`, and checks the host."""
