"""What Tauten makes: a directory that can be shipped, read without trust and run without PyTorch."""
