"""The standard library, written in the language: the `.dsk` files of this folder."""
