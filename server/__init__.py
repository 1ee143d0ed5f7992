"""The server's side: the ServerApp, its loop over rounds, and the Flower processes around it."""
