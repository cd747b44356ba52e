"""A synthetic set of brain MRI images with planted faults."""
