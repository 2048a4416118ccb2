"""Answers that are remembered: a request that came before is answered without computing it again.

::

    ServedModel ── Cached ── Worker
                     ├─ Keys       what an answer is remembered under
                     ├─ Memory     which answers are kept (a policy: no I/O, no clock)
                     └─ RedisTier  what other servers remember: Frames on the way, a Breaker when it does not answer
"""
