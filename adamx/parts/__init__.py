"""The parts that methods are spelled from; they know the ground only."""
