"""Sources, partitions and the public proxy set; all of it works offline."""
