"""The sweep: a server whose system calls fail, the random scripts, and the soak."""
