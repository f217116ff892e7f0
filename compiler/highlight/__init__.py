"""How specs are coloured: one set of rules, made from the language's own tables, for Pygments and for editors."""
