"""Turns partitions' streams into logs."""
