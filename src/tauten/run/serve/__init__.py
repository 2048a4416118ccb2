"""The inference server: Open Inference Protocol V2 over HTTP.

::

    Server ── HttpConnection (protocol/http) ── Endpoints ── ServedModel ── Worker ── Engine
       └───── Connections (deadlines, drain)        ├─ protocol/v2: bytes <-> arrays
                                                    └─ Statistics ── Metrics
"""
