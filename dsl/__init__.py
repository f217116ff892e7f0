"""The `.dsk` language: grammar, syntax tree, diagnostics, formatter and the standard library."""
