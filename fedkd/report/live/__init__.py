"""A read-only page about a run, on this machine alone: ``fedkd dashboard RUN``."""
