"""Products of few rows, and of int8 and fp8."""
