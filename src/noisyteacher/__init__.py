"""noisyteacher."""
