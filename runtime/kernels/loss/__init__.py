"""The output projection and cross entropy at once."""
