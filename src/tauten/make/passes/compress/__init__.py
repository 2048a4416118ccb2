"""Passes that make weights cheap to code: ``share`` by few values, ``low_rank`` by thin factors, ``rate`` by training
towards a number of bytes, ``rate_distortion`` by rounding where no training data is.
"""
