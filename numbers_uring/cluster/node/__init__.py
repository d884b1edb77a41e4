"""A server that publishes its numbers to a stream of each partition."""
