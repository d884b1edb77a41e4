"""The server: its loop or loops, what stops them, and how the parts are put together."""
