"""What may leave the process, and the one place through which it does."""
