"""What stands around a transformation and is one again."""
