"""What is read from disk and written to it: guarded, whole or not at all."""
