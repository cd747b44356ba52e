"""Exported models side by side: time, memory, size and accuracy."""
