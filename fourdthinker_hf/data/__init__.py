"""Records, simulated scenes and the raw-video pipeline."""
