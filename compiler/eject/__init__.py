"""`dskc eject`: a generated class becomes code of the user's own, and the spec points at it."""
