"""The command line: one module a command, options to configuration."""
