"""Clients of a server that speaks the Open Inference Protocol V2 over HTTP, Tauten's or another's.

::

    Client, AsyncClient ── conversation (what is sent, what is tried again, what an answer means: no I/O, no clock)
         └── connections (sockets, kept for the next request)
"""
