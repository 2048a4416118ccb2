"""What a user brings (``Task``), what a pass works on (``Model``), and the one place where passes are applied."""
