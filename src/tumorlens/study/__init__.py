"""Many runs: plans, workers, and the comparison of what they reached."""
