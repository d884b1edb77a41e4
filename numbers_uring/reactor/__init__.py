"""Sockets in, completions out: the contract, over epoll and over io_uring."""
