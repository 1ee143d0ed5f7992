"""The client's side: the relay that Flower runs, and the door to the agent that holds the data."""
