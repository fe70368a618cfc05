"""Train a gated student against its dense teacher."""
