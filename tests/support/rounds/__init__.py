"""A cluster under load that is hurt round after round: its parts, the faults, the judge."""
