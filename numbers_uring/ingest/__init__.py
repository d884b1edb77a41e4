"""Lines of numbers in, new ones out: the kernels, the bitmap and the counters."""
