"""The load generator: a client that asks a server as many clients would, and measures what they would feel."""
