"""Passes that take weights away: ``magnitude`` by zeros, ``structured`` in whole channels."""
