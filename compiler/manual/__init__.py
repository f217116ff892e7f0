"""The pages that the language's own tables and comments write: `python -m dskc.compiler.manual`."""
