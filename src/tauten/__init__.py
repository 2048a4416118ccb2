"""Tauten: a trained PyTorch model and a budget in, a smaller and faster artifact that was measured out."""
