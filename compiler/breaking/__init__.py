"""What a change of a spec does to checkpoints that exist: parameters that move, and results that change unseen."""
