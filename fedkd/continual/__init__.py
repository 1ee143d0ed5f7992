"""Learning from a stream: experiences, methods that keep what was learned, and the measures of both."""
