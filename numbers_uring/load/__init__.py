"""A client that sends numbers as fast as it can, and what it measured."""
