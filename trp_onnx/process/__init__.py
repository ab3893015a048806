"""What this process may take and must not let through: memory, interrupts, what native code prints."""
