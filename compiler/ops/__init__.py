"""The operations, and the primitives by which specs call them."""
