"""What a run looks like from inside: recorded on the device, judged and drawn on the host."""
