"""What several test modules need, a module for each kind."""
