"""The half that runs artifacts: engines, measures, server and load. It never imports PyTorch when it is imported."""
