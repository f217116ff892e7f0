"""The subcommands of `dskc`, one file each or one small family; they import what they need when they are called."""
