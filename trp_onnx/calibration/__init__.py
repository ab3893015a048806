"""What samples tell: moments of what flows into layers, layers fitted in turn, running statistics."""
