"""Task files that ship with Tauten."""
