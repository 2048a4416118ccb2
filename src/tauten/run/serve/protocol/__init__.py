"""What travels between server and client, and how. It stands on core alone, so that ``run.load`` shares it."""
