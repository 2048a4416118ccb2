"""The half that makes artifacts. Everything in it but ``model.task`` and ``datasets`` needs PyTorch."""
