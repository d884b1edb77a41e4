"""The process: standard streams, signals, threads, descriptors and files."""
