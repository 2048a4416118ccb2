"""What runs batches: in the event loop, in a thread, in a process of its own."""
