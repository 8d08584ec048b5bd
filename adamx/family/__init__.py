"""The methods: spelling, no mathematics; one docstring and one expression a file."""
