"""The half that makes artifacts. Everything in it but ``model.task`` needs PyTorch."""
