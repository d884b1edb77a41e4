"""The service manager: notifications and inherited sockets."""
