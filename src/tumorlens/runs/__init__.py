"""Run folders: their files, lists of them, and their mirror in MLflow."""
