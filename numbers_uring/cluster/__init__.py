"""Several servers as one: nodes publish to NATS JetStream, collectors write the logs."""
