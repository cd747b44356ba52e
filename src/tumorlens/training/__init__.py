"""From settings to a trained run folder."""
