"""Passes that take weights away: ``structured`` in whole channels, ``depth`` in blocks, ``magnitude`` by zeros,
``gradual`` by zeros that come while the model trains.
"""
