"""Measures, intervals and paired tests: numpy and scipy, no files, no torch."""
