"""The Open Inference Protocol V2 over gRPC: what travels, as protocol buffers. Needs the extra ``grpc``.

::

    schema     descriptors built in code ── messages     the services' messages and methods
                                            ├── codec    requests -> tensors ── seen   those like one before
                                            ├── answers  tensors -> responses
                                            └── status   faults -> gRPC's status codes
"""
