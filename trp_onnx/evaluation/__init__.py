"""What outputs are, how far they moved, and what that costs."""
