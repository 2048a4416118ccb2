"""Passes that change how a device computes a model and not what it answers: ``half`` in 16 bits, ``channels_last`` and
``in_place`` by how activations lie in memory, ``micro_batches`` by how many samples it holds at once.
"""
