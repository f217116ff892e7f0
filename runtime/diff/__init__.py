"""Two models on the same batch, operation by operation: `dskc diff`."""
