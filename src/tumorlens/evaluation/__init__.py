"""Predictions of a run on a subset, and the measures computed from them."""
