"""Exported models: artefacts, runtimes, parity, prediction, benchmarks."""
