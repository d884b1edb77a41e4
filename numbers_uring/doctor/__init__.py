"""Tries the start steps of `serve`, and looks at the host around it."""
