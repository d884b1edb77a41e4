"""The log: written, read back, resumed and repaired."""
