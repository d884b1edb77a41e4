"""Compares the logs of a cluster with its streams, and copies of a log with each other."""
