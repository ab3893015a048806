"""What a user does: one module a command, each a story over the rooms below."""
