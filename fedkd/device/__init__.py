"""What a device does with its student: export it, measure it, keep versions of it and choose which one it serves."""
