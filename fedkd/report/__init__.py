"""What a run has spent and what it has achieved, for people and for programs."""
