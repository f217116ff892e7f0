"""Row programs: what one kernel computes of each row, as expressions that are differentiated and then written."""
